"""The reflector: its copy ends up as the store is, whatever happens to the watch."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from random import Random
from typing import Any

import pytest

from belvedere_operators.runtime import Caches, FakeClock, Key, Reflector
from belvedere_operators.runtime.clock import settle
from belvedere_platform.errors import CorruptData, Gone, NotInstalled, Unavailable
from belvedere_platform.store import Kind, Listing, Manifest, WatchEvent
from belvedere_platform.store.embedded import EmbeddedStore
from belvedere_platform.store.kinds import CONFIG_MAP

Put = Callable[..., Awaitable[Manifest]]
A, B, C = (Key("default", name) for name in "abc")


def manifest(name: str, version: int = 1) -> Manifest:
    return {"metadata": {"name": name, "namespace": "default", "resourceVersion": str(version), "managedFields": []}}


class ScriptedStore:
    """A store that answers lists and watches as a test says; a watch that has said all hangs."""

    def __init__(self, lists: list[Any], watches: list[list[Any]]) -> None:
        self.lists = lists
        self.watches = watches
        self.asked: list[str] = []
        self.version = 0

    async def list(
        self,
        kind: Kind,
        namespace: str | None = None,
        *,
        labels: Mapping[str, str] | None = None,
        not_older_than: str | None = None,
    ) -> Listing:
        answer = self.lists.pop(0)
        self.asked.append("list" if not_older_than is None else f"list {not_older_than}")
        if isinstance(answer, Exception):
            raise answer
        self.version += 10
        return Listing(items=[manifest(name) for name in answer], resource_version=str(self.version))

    async def watch(
        self, kind: Kind, namespace: str | None = None, *, resource_version: str, **_: Any
    ) -> AsyncIterator[Any]:
        self.asked.append(f"watch {resource_version}")
        for answer in self.watches.pop(0) if self.watches else [None]:
            if answer is None:
                await asyncio.Event().wait()
            elif isinstance(answer, Exception):
                raise answer
            type_, name, version = answer
            yield WatchEvent(type=type_, object=manifest(name, version))


@pytest.fixture
async def running() -> AsyncIterator[Callable[[Reflector], asyncio.Task[None]]]:
    tasks: list[asyncio.Task[None]] = []

    def run(reflector: Reflector) -> asyncio.Task[None]:
        tasks.append(asyncio.create_task(reflector.run()))
        return tasks[-1]

    yield run
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def reflect(store: Any, clock: FakeClock) -> tuple[Reflector, list[str]]:
    reported: list[str] = []
    reflector = Reflector(store, CONFIG_MAP, clock=clock, random=Random(0))
    reflector.subscribe(lambda changed: reported.append(changed["metadata"]["name"]))
    return reflector, reported


async def test_it_lists_then_follows(clock: FakeClock, running: Any) -> None:
    changes = [("MODIFIED", "a", 11), ("ADDED", "c", 12), ("DELETED", "b", 13), ("BOOKMARK", "", 20), None]
    store = ScriptedStore([["a", "b"]], [changes])
    reflector, reported = reflect(store, clock)
    running(reflector)
    await reflector.synced.wait()
    await settle()
    assert reported == ["a", "b", "a", "c", "b"]
    assert [found["metadata"]["name"] for found in reflector.list()] == ["a", "c"]
    assert reflector.get(B) is None
    assert reflector.get(A) == {"metadata": {"name": "a", "namespace": "default", "resourceVersion": "11"}}
    assert reflector.list("elsewhere") == []


async def test_after_gone_it_lists_again_and_reports_what_vanished(clock: FakeClock, running: Any) -> None:
    store = ScriptedStore([["a", "b"], ["b", "c"]], [[("MODIFIED", "a", 11), Gone("too old")]])
    reflector, reported = reflect(store, clock)
    running(reflector)
    await settle()
    reported.clear()
    await clock.advance(1)
    assert sorted(reported) == ["a", "b", "c"]
    assert reflector.get(A) is None
    # Only the first list may be of any time: a later one from a server that lags behind would undo what is known.
    assert store.asked == ["list 0", "watch 10", "list", "watch 20"]


async def test_a_watch_that_ends_goes_on_where_it_was(clock: FakeClock, running: Any) -> None:
    store = ScriptedStore([["a"]], [[("MODIFIED", "a", 11)], [("BOOKMARK", "", 30)], [None]])
    reflector, _ = reflect(store, clock)
    running(reflector)
    await clock.advance(5)
    assert store.asked == ["list 0", "watch 10", "watch 11", "watch 30"]


async def test_while_the_store_is_away_it_waits_longer_each_time_and_keeps_its_copy(
    clock: FakeClock, running: Any
) -> None:
    away = [Unavailable("no answer")]
    store = ScriptedStore([["a"]], [away] * 30)
    reflector, _ = reflect(store, clock)
    running(reflector)
    await clock.advance(1)
    early = len(store.asked)
    await clock.advance(600)
    assert early > 3
    # Between 15 and 30 seconds apart once the longest delay is reached.
    assert 600 / 30 <= len(store.asked) - early <= 600 / 15 + 10
    assert reflector.get(A) is not None


async def test_a_first_list_that_fails_is_tried_again(clock: FakeClock, running: Any) -> None:
    store = ScriptedStore([Unavailable("no answer"), ["a"]], [])
    reflector, reported = reflect(store, clock)
    running(reflector)
    await settle()
    assert not reflector.synced.is_set()
    await clock.advance(1)
    assert reflector.synced.is_set()
    assert reported == ["a"]


async def test_an_error_that_no_retry_mends_ends_it(clock: FakeClock, running: Any) -> None:
    reflector, _ = reflect(ScriptedStore([CorruptData("not a store")], []), clock)
    with pytest.raises(CorruptData):
        await running(reflector)


async def test_a_late_subscriber_hears_of_all(clock: FakeClock, running: Any) -> None:
    reflector, _ = reflect(ScriptedStore([["a", "b"]], []), clock)
    running(reflector)
    await reflector.synced.wait()
    heard: list[str] = []
    reflector.subscribe(lambda changed: heard.append(changed["metadata"]["name"]))
    assert heard == ["a", "b"]


async def test_one_reflector_for_each_kind_and_selector(store: EmbeddedStore, clock: FakeClock) -> None:
    caches = Caches(store, clock=clock)
    assert caches.of(CONFIG_MAP) is caches.of(CONFIG_MAP)
    assert caches.of(CONFIG_MAP, {"a": "b"}) is not caches.of(CONFIG_MAP)
    assert len(caches.all()) == 2


async def test_it_follows_a_real_store_through_a_history_that_was_dropped(
    store: EmbeddedStore, put: Put, clock: FakeClock, running: Any
) -> None:
    await put("a")
    await put("gone-later")
    reflector, _ = reflect(store, clock)
    task = running(reflector)
    await reflector.synced.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await store.delete(CONFIG_MAP, "gone-later", "default")
    for number in range(40):
        await put("a", str(number))
    running(reflector)
    async with asyncio.timeout(60):
        while reflector.get(Key("default", "gone-later")) or reflector.list()[0]["data"]["value"] != "39":
            await clock.advance(1)
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("optional", [False, True])
async def test_a_kind_that_is_not_installed_is_waited_for_unless_it_is_optional(
    clock: FakeClock, running: Any, optional: bool
) -> None:
    store = ScriptedStore([NotInstalled("unknown"), NotInstalled("unknown"), ["a"]], [])
    reflector = Reflector(store, CONFIG_MAP, clock=clock, optional=optional, random=Random(0))
    running(reflector)
    await settle()
    assert (reflector.absent, reflector.problem) == (True, "unknown")
    assert reflector.synced.is_set() is optional
    await clock.advance(5)
    assert (reflector.absent, reflector.problem) == (False, None)
    assert reflector.synced.is_set()
    assert reflector.get(A) is not None
