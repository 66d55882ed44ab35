"""The controller loop: which keys are reconciled, and what becomes of what they raise."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from prometheus_client import REGISTRY

from belvedere_operators.runtime import (
    After,
    Caches,
    Controller,
    ControlPlane,
    FakeClock,
    Key,
    SystemClock,
    Terminal,
    Watched,
    label_keys,
    owner_keys,
)
from belvedere_platform.errors import BelvedereError, Conflict, CorruptData, Unavailable
from belvedere_platform.store import Manifest
from belvedere_platform.store.embedded import EmbeddedStore
from belvedere_platform.store.kinds import CONFIG_MAP, SECRET

Put = Callable[..., Awaitable[Manifest]]
A = Key("default", "a")


class Reconciler:
    """Notes each key and does what it was told to."""

    def __init__(self) -> None:
        self.keys: asyncio.Queue[Key] = asyncio.Queue()
        self.outcomes: list[After | Exception | None] = []

    async def __call__(self, key: Key) -> After | None:
        self.keys.put_nowait(key)
        outcome = self.outcomes.pop(0) if self.outcomes else None
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def next(self) -> str:
        return (await asyncio.wait_for(self.keys.get(), 30)).name


@pytest.fixture
def reconciler() -> Reconciler:
    return Reconciler()


@pytest.fixture
def controller(store: EmbeddedStore, clock: FakeClock, reconciler: Reconciler) -> Controller:
    return Controller(
        name="tested", kind=CONFIG_MAP, reconcile=reconciler, caches=Caches(store, clock=clock), clock=clock
    )


@pytest.mark.parametrize(
    ("outcome", "delay"),
    [
        (None, None),
        (After(30), 30),
        (Unavailable("no answer"), 0.05),
        (Conflict("changed meanwhile"), 0.05),
        (RuntimeError("a bug"), 0.05),
        (Terminal("the dataset is unknown"), None),
    ],
)
async def test_an_outcome_decides_when_the_key_comes_again(
    controller: Controller,
    clock: FakeClock,
    reconciler: Reconciler,
    outcome: After | Exception | None,
    delay: float | None,
) -> None:
    reconciler.outcomes = [outcome]
    await controller.reconcile_one(A)
    assert len(controller.queue) == 0
    await clock.advance((delay or 1000) - 0.01)
    assert len(controller.queue) == 0
    await clock.advance(0.02)
    assert len(controller.queue) == (0 if delay is None else 1)


async def test_success_ends_the_backoff(controller: Controller, clock: FakeClock, reconciler: Reconciler) -> None:
    reconciler.outcomes = [Unavailable("once"), Unavailable("twice"), None]
    for _ in range(3):
        await controller.reconcile_one(A)
        await clock.advance(10)
    assert controller.queue.retry(A) == 0.05
    controller.queue.close()


async def test_errors_are_counted_and_a_bug_is_logged_with_its_trace(
    controller: Controller, reconciler: Reconciler, caplog: pytest.LogCaptureFixture
) -> None:
    def count(error: str) -> float:
        labels = {"controller": "tested", "error": error}
        return REGISTRY.get_sample_value("belvedere_reconcile_errors_total", labels) or 0

    before = count("RuntimeError"), count("Unavailable")
    reconciler.outcomes = [RuntimeError("a bug"), Unavailable("no answer")]
    with caplog.at_level(logging.WARNING):
        await controller.reconcile_one(A)
        await controller.reconcile_one(A)
    assert (count("RuntimeError"), count("Unavailable")) == (before[0] + 1, before[1] + 1)
    assert [record.exc_info is not None for record in caplog.records] == [True, False]
    assert all("default/a" in record.getMessage() for record in caplog.records)
    assert REGISTRY.get_sample_value("belvedere_queue_depth", {"controller": "tested"}) == 0
    controller.queue.close()


async def test_a_child_maps_to_its_owner_and_a_label_to_its_name() -> None:
    owners = [
        {"apiVersion": "v1", "kind": "ConfigMap", "name": "a", "uid": "1"},
        {"apiVersion": "v1", "kind": "Secret", "name": "b", "uid": "2"},
        {"apiVersion": "other/v1", "kind": "ConfigMap", "name": "c", "uid": "3"},
    ]
    child = {"metadata": {"namespace": "default", "ownerReferences": owners, "labels": {"belvedere.dev/service": "d"}}}
    assert list(owner_keys(CONFIG_MAP)(child)) == [Key("default", "a")]
    assert list(label_keys("belvedere.dev/service")(child)) == [Key("default", "d")]
    assert list(label_keys("belvedere.dev/version")(child)) == []
    assert list(owner_keys(CONFIG_MAP)({"metadata": {"name": "x"}})) == []


class Plane:
    """A control plane with one controller of ConfigMaps that watches the Secrets they own, on a real store."""

    def __init__(self, store: EmbeddedStore, reconciler: Reconciler) -> None:
        clock = SystemClock()
        caches = Caches(store, clock=clock)
        watched = [Watched(kind=SECRET, keys=owner_keys(CONFIG_MAP))]
        self.controller = Controller(
            name="running",
            kind=CONFIG_MAP,
            reconcile=reconciler,
            caches=caches,
            clock=clock,
            watched=watched,
            workers=2,
        )
        self.plane = ControlPlane(caches, [self.controller])


@pytest.fixture
async def plane(store: EmbeddedStore, reconciler: Reconciler) -> AsyncIterator[Plane]:
    plane = Plane(store, reconciler)
    running = asyncio.create_task(plane.plane.run())
    await asyncio.wait_for(plane.plane.ready.wait(), 30)
    yield plane
    plane.plane.stop()
    await running


@pytest.mark.usefixtures("plane")
async def test_every_change_reconciles_its_key(store: EmbeddedStore, put: Put, reconciler: Reconciler) -> None:
    owner = await put("a")
    assert await reconciler.next() == "a"
    await put("a", "changed")
    assert await reconciler.next() == "a"
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "a", "uid": owner["metadata"]["uid"]}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "child", "namespace": "default"}}
    secret["metadata"] |= {"ownerReferences": [reference]}  # type: ignore[operator]
    await store.apply(secret, field_manager="test")
    assert await reconciler.next() == "a"
    await store.delete(SECRET, "child", "default")
    assert await reconciler.next() == "a"
    await store.delete(CONFIG_MAP, "a", "default")
    assert await reconciler.next() == "a"


async def test_what_is_there_at_the_start_is_reconciled(store: EmbeddedStore, put: Put, reconciler: Reconciler) -> None:
    await put("a")
    await put("b")
    plane = Plane(store, reconciler)
    running = asyncio.create_task(plane.plane.run())
    assert {await reconciler.next(), await reconciler.next()} == {"a", "b"}
    plane.plane.stop()
    await running


@pytest.mark.usefixtures("plane")
async def test_a_failing_key_is_tried_until_it_succeeds(put: Put, reconciler: Reconciler) -> None:
    reconciler.outcomes = [Unavailable("no answer"), BelvedereError("still not"), None]
    await put("a")
    assert [await reconciler.next() for _ in range(3)] == ["a", "a", "a"]


async def test_one_part_that_fails_ends_all(store: EmbeddedStore, clock: FakeClock) -> None:
    ended: list[str] = []

    class Part:
        def __init__(self, name: str, failure: Exception | None) -> None:
            self.name = name
            self.failure = failure

        async def run(self) -> None:
            try:
                if self.failure is not None:
                    raise self.failure
                await asyncio.Event().wait()
            finally:
                ended.append(self.name)

    parts: list[Any] = [Part("steady", None), Part("broken", CorruptData("the disk is full"))]
    with pytest.raises(CorruptData, match="the disk is full"):
        await ControlPlane(Caches(store, clock=clock), parts).run()
    assert sorted(ended) == ["broken", "steady"]
