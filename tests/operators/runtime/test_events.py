"""Events: what happens again is counted, and one that cannot be written harms nothing."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from belvedere_operators.runtime import EventRecorder, FakeClock
from belvedere_platform.store import Manifest
from belvedere_platform.store.embedded import EmbeddedStore
from belvedere_platform.store.kinds import EVENT

Put = Callable[..., Awaitable[Manifest]]


async def test_the_same_again_raises_the_count(store: EmbeddedStore, put: Put, clock: FakeClock) -> None:
    about = await put("a")
    recorder = EventRecorder(store, clock=clock, component="belvedere-tested")
    for _ in range(3):
        await recorder.record(about, "Normal", "Promoted", "v2 is stable")
        await clock.advance(60)
    await recorder.record(about, "Warning", "Aborted", "v3 fails")
    events = {event["reason"]: event for event in (await store.list(EVENT, "default")).items}
    assert {reason: event["count"] for reason, event in events.items()} == {"Promoted": 3, "Aborted": 1}
    promoted = events["Promoted"]
    assert promoted["firstTimestamp"] == "2026-01-01T00:00:00Z"
    assert promoted["lastTimestamp"] == "2026-01-01T00:02:00Z"
    assert promoted["involvedObject"]["uid"] == about["metadata"]["uid"]


async def test_an_event_that_cannot_be_written_is_logged(
    store: EmbeddedStore, put: Put, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    about: dict[str, Any] = await put("a")
    await store.close()
    with caplog.at_level(logging.WARNING):
        await EventRecorder(store, clock=clock, component="tested").record(about, "Normal", "Promoted", "v2 is stable")
    assert "Promoted" in caplog.text
