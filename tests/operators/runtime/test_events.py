"""Events: what happens again is counted, and one that cannot be written harms nothing."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest

from belvedere_operators.runtime import EventRecorder, FakeClock, MeteredStore, timestamp
from belvedere_platform.store import Kind, Manifest
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


class CountingStore(MeteredStore):
    """Counts the reads."""

    reads = 0

    async def get(self, kind: Kind, name: str, namespace: str) -> Manifest:
        self.reads += 1
        return await super().get(kind, name, namespace)


async def test_nothing_is_read_of_what_this_process_must_know(store: EmbeddedStore, put: Put, clock: FakeClock) -> None:
    counting = CountingStore(store)
    recorder = EventRecorder(counting, clock=clock, component="belvedere-tested", kept=3)
    born = {name: timestamp(clock() + timedelta(seconds=after)) for name, after in (("old", 0), ("new", 9))}
    objects = {
        name: {**(about := await put(name)), "metadata": about["metadata"] | {"creationTimestamp": at}}
        for name, at in born.items()
    }
    await clock.advance(5)
    for about, reads in (("old", 1), ("old", 1), ("new", 1), ("new", 1)):
        await recorder.record(objects[about], "Normal", "Promoted", "v2 is stable")
        assert counting.reads == reads
    await clock.advance(5)
    # As more happens than is kept, what may be known no longer is read.
    for number in range(3):
        await recorder.record(objects["new"], "Normal", "Promoted", f"v{number + 3} is stable")
    await recorder.record(objects["new"], "Normal", "Promoted", "v2 is stable")
    assert counting.reads == 3
    counts = {
        (event["involvedObject"]["name"], event["message"][:2]): event["count"]
        for event in (await store.list(EVENT)).items
    }
    assert counts == {("old", "v2"): 2, ("new", "v2"): 3, ("new", "v3"): 1, ("new", "v4"): 1, ("new", "v5"): 1}


async def test_another_process_counts_on(store: EmbeddedStore, put: Put, clock: FakeClock) -> None:
    about = await put("a")
    for _ in range(2):
        recorder = EventRecorder(store, clock=clock, component="belvedere-tested")
        await recorder.record(about, "Normal", "Promoted", "v2 is stable")
    (event,) = (await store.list(EVENT, "default")).items
    assert event["count"] == 2


async def test_an_event_that_cannot_be_written_is_logged(
    store: EmbeddedStore, put: Put, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    about: dict[str, Any] = await put("a")
    await store.close()
    with caplog.at_level(logging.WARNING):
        await EventRecorder(store, clock=clock, component="tested").record(about, "Normal", "Promoted", "v2 is stable")
    assert "Promoted" in caplog.text
