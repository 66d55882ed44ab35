"""Whoever is let in is answered in time, and the others hear so at once: in virtual time, with an engine that takes what it is told to."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from belvedere_platform.protocol import Reason, V2Error
from belvedere_serving.server.admission import Forecast, Lag, Lane, Pace
from belvedere_serving.server.batching import Batcher
from belvedere_serving.server.metrics import NoMetrics
from belvedere_serving.server.waiting import Array, BatchPolicy
from virtual_time import play

MAX_ROWS = 8
DEADLINE = 1.0
Clock = Callable[[], float]


@dataclass
class Engine:
    """Takes `fixed` and `each` row so long."""

    fixed: float = 0.01
    each: float = 0.005

    async def __call__(self, rows: Array) -> Array:
        await asyncio.sleep(self.fixed + self.each * len(rows))
        return rows

    @property
    def peak(self) -> float:
        return MAX_ROWS / (self.fixed + self.each * MAX_ROWS)


@dataclass
class Seen:
    """How requests ended, and after how long."""

    answered: list[float] = field(default_factory=list)
    refused: list[V2Error] = field(default_factory=list)
    refused_after: list[float] = field(default_factory=list)
    late: list[float] = field(default_factory=list)
    most_waiting: int = 0


def a_batcher(engine: Engine, clock: Clock, lane: Lane | None = None) -> Batcher:
    policy = BatchPolicy(max_rows=MAX_ROWS, wait_seconds=0.002, max_waiting_rows=100_000)
    return Batcher("m", engine, policy, NoMetrics(), clock=clock, lane=lane)


async def ask(
    batcher: Batcher, clock: Clock, seen: Seen, preparing: float = 0.0, lock: asyncio.Lock | None = None
) -> None:
    begin = clock()
    try:
        with batcher.admitted(1, begin + DEADLINE):
            seen.most_waiting = max(seen.most_waiting, len(batcher.work()))
            if lock is not None:
                with batcher.coming():
                    async with lock:
                        await asyncio.sleep(preparing)
                        batcher.preparing.observe(1, preparing)
            await batcher.submit(np.zeros((1, 1), np.float32), begin + DEADLINE)
        seen.answered.append(clock() - begin)
    except V2Error as error:
        if error.reason is Reason.RESOURCE_EXHAUSTED:
            seen.refused.append(error)
            seen.refused_after.append(clock() - begin)
        else:
            seen.late.append(clock() - begin)


async def load(batcher: Batcher, clock: Clock, rate: float, seconds: float, preparing: float = 0.0) -> Seen:
    """Send at random moments whatever comes back."""
    chooser, seen, tasks = random.Random(3), Seen(), []
    lock = asyncio.Lock() if preparing else None
    end = clock() + seconds
    while clock() < end:
        await asyncio.sleep(chooser.expovariate(rate))
        tasks.append(asyncio.create_task(ask(batcher, clock, seen, preparing, lock)))
    await asyncio.gather(*tasks)
    await batcher.close()
    return seen


@pytest.mark.parametrize("times", [1.5, 3, 6])
def test_overloaded_it_answers_as_much_as_ever_and_nothing_late(times: float) -> None:
    engine, seconds = Engine(), 5.0

    async def story(clock: Clock) -> Seen:
        return await load(a_batcher(engine, clock), clock, times * engine.peak, seconds)

    seen = play(story)
    assert len(seen.answered) / seconds >= 0.95 * engine.peak
    assert not seen.late
    assert max(seen.answered) <= DEADLINE
    assert max(seen.refused_after) == 0
    assert all(error.retry_after_seconds for error in seen.refused)
    assert seen.most_waiting <= DEADLINE / (engine.fixed + engine.each * MAX_ROWS) + 1


def test_preparing_that_is_slower_than_the_engine_is_seen_too() -> None:
    engine, preparing = Engine(), 0.02

    async def story(clock: Clock) -> Seen:
        return await load(a_batcher(engine, clock), clock, 150, 5, preparing)

    seen = play(story)
    assert len(seen.answered) / 5 >= 0.95 / preparing
    assert not seen.late
    assert max(seen.refused_after) == 0


def test_two_models_on_one_lane_count_each_others_batches() -> None:
    engine = Engine()

    async def story(clock: Clock) -> list[Seen]:
        lane = Lane()
        one, other = (a_batcher(engine, clock, lane) for _ in range(2))
        return list(await asyncio.gather(*(load(batcher, clock, 3 * engine.peak, 4) for batcher in (one, other))))

    for seen in play(story):
        assert not seen.late
        assert len(seen.answered) / 4 >= 0.45 * engine.peak


@pytest.mark.parametrize(("before", "after"), [(1, 6), (6, 1), (0.5, 3)])
def test_a_change_of_pace_is_learned(before: float, after: float) -> None:
    """For a while after the engine slows down answers are late; then none is, and as many come as it can give."""

    async def story(clock: Clock) -> tuple[Seen, float]:
        engine = Engine(0.01 * before, 0.005 * before)
        batcher = a_batcher(engine, clock)
        await load(batcher, clock, 600, 2)
        engine.fixed, engine.each = 0.01 * after, 0.005 * after
        await load(batcher, clock, 600, 3)
        return await load(batcher, clock, 600, 5), min(600.0, engine.peak)

    seen, peak = play(story)
    assert not seen.late
    assert len(seen.answered) / 5 >= 0.85 * peak


def test_a_request_alone_is_let_in_whatever_the_estimate() -> None:
    async def story(clock: Clock) -> Seen:
        batcher = a_batcher(Engine(), clock)
        batcher.running.observe(MAX_ROWS, 1000)
        batcher.running.observe(1, 1000)
        return await load(batcher, clock, 5, 20)

    seen = play(story)
    assert not seen.late
    assert len(seen.answered) > len(seen.refused)


def test_a_lagging_loop_counts_against_the_time_that_is_left() -> None:
    lag = Lag()
    lag.observe(0.3)
    assert lag.seconds == 0.3
    forecast = Forecast(seconds=0.4, lag_seconds=lag.seconds, alone=False)
    assert not forecast.in_time(1.0)
    assert forecast.in_time(1.11)
    lag.observe(0.0)
    assert 0 < lag.seconds < 0.3


@given(
    runs=st.lists(st.tuples(st.integers(1, 64), st.floats(0.001, 5)), min_size=1, max_size=30), rows=st.integers(0, 200)
)
def test_an_estimate_lies_within_what_was_seen(runs: list[tuple[int, float]], rows: int) -> None:
    pace = Pace()
    for size, seconds in runs:
        pace.observe(size, seconds)
    a_row = [seconds / size for size, seconds in runs]
    assert rows * min(a_row) * 0.999 <= pace.expected(rows) <= rows * max(a_row) * 1.001


def test_what_never_ran_is_expected_to_take_no_time() -> None:
    assert Counter([Pace().expected(rows) for rows in (0, 1, 9)]) == {0.0: 3}
