"""The clock that a test moves: sleepers wake in order, each at its own time."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from belvedere_operators.runtime import FakeClock, SystemClock, parse_timestamp, timestamp
from belvedere_operators.runtime.clock import settle


async def test_sleepers_wake_in_order_at_their_time() -> None:
    clock = FakeClock()
    woken: list[tuple[str, float]] = []

    async def sleeper(name: str, seconds: float, times: int = 1) -> None:
        for _ in range(times):
            await clock.sleep(seconds)
            woken.append((name, clock.monotonic()))

    tasks = [asyncio.create_task(sleeper("slow", 5)), asyncio.create_task(sleeper("quick", 2, times=3))]
    await clock.advance(4.5)
    assert woken == [("quick", 2), ("quick", 4)]
    await clock.advance(10)
    assert woken == [("quick", 2), ("quick", 4), ("slow", 5), ("quick", 6)]
    assert clock() == datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=14.5)
    await asyncio.gather(*tasks)


async def test_a_cancelled_sleeper_is_forgotten() -> None:
    clock = FakeClock()
    task = asyncio.create_task(clock.sleep(5))
    await settle()
    assert clock.num_sleepers == 1
    task.cancel()
    await settle()
    assert clock.num_sleepers == 0
    await clock.advance(10)


async def test_the_system_clock_is_in_utc_and_moves() -> None:
    clock = SystemClock()
    before = clock.monotonic()
    await clock.sleep(0)
    assert clock().tzinfo is UTC
    assert clock.monotonic() >= before


@pytest.mark.parametrize("text", ["2026-01-31T12:00:00Z", "2026-01-31T12:00:00.123456Z", "2026-01-31T13:00:00+01:00"])
def test_a_time_is_read_as_kubernetes_writes_it(text: str) -> None:
    assert timestamp(parse_timestamp(text)) == "2026-01-31T12:00:00Z"
