"""Reads from a copy: a write is seen by the next read, time never goes back, and what is asked of the server is counted."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from belvedere_operators.runtime import CachedStore, Caches, FakeClock, Key, MeteredStore
from belvedere_operators.runtime.copies import Copies
from belvedere_platform.errors import NotFound
from belvedere_platform.store import Manifest
from belvedere_platform.store.embedded import EmbeddedStore
from belvedere_platform.store.kinds import CONFIG_MAP, SECRET

Put = Callable[..., Awaitable[Manifest]]
OURS = {"app.kubernetes.io/managed-by": "belvedere"}


def manifest(name: str, version: int, namespace: str = "default", **labels: str) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": namespace, "resourceVersion": str(version), "labels": labels},
    }


@pytest.fixture
async def followed(store: EmbeddedStore, clock: FakeClock) -> Callable[..., Awaitable[CachedStore]]:
    """Read the ConfigMaps once, and then hear no more of them, as when the watch is late."""

    async def follow(labels: dict[str, str] | None = None, namespaces: tuple[str, ...] = ()) -> CachedStore:
        caches = Caches(store, clock=clock, namespaces=namespaces)
        task = asyncio.create_task(caches.of(CONFIG_MAP, labels).run())
        await caches.wait_synced()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return CachedStore(store, caches)

    return follow


async def test_a_reconcile_sees_its_own_last_write(followed: Any, put: Put) -> None:
    await put("a", "1")
    reading = await followed()
    assert (await reading.get(CONFIG_MAP, "a", "default"))["data"] == {"value": "1"}
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "namespace": "default"}}
    await reading.apply({**body, "data": {"value": "2"}}, field_manager="test")
    assert (await reading.get(CONFIG_MAP, "a", "default"))["data"] == {"value": "2"}
    listing = await reading.list(CONFIG_MAP, "default")
    assert [one["data"]["value"] for one in listing.items] == ["2"]


async def test_what_stands_is_not_applied_again_and_what_does_not_is(followed: Any, put: Put) -> None:
    await put("before")
    reading = await followed()
    asked: list[str] = []
    inner, apply = reading._store, reading._store.apply

    async def counted(manifest: Manifest, **more: Any) -> Manifest:
        asked.append(manifest["metadata"]["name"])
        return await apply(manifest, **more)

    inner.apply = counted
    metadata = {"name": "a", "namespace": "default", "labels": {"x": "1"}}
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"b": "1", "a": "2"}}
    first = await reading.apply(body, field_manager="m")
    again = await reading.apply({**body, "data": {"a": "2", "b": "1"}}, field_manager="m")
    assert again["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
    assert asked == ["a"]
    # A field less, and a field that someone else has changed, are both written.
    less = {**body, "data": {"a": "2"}}
    assert (await reading.apply(less, field_manager="m"))["data"] == {"a": "2"}
    assert asked == ["a", "a"]
    meddled = await inner.apply({**body, "data": {"a": "9"}}, field_manager="other")
    reading._caches.of(CONFIG_MAP).learn(meddled)
    assert (await reading.apply(less, field_manager="m"))["data"] == {"a": "2"}
    # Another manager's word is its own.
    await reading.apply(less, field_manager="n")
    assert asked == ["a"] * 5


async def test_what_others_write_is_seen_when_the_watch_says_so(followed: Any, put: Put) -> None:
    reading = await followed()
    await put("late")
    with pytest.raises(NotFound):
        await reading.get(CONFIG_MAP, "late", "default")


async def test_a_kind_that_is_not_followed_is_read_from_the_store(followed: Any, store: EmbeddedStore) -> None:
    reading = await followed()
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s", "namespace": "default"}}
    await store.apply(secret, field_manager="test")
    assert (await reading.get(SECRET, "s", "default"))["metadata"]["name"] == "s"


async def test_of_a_kind_followed_by_a_label_only_ours_are_there(followed: Any, put: Put) -> None:
    await put("ours", labels=OURS)
    await put("theirs")
    reading = await followed(OURS)
    assert (await reading.get(CONFIG_MAP, "ours", "default"))["metadata"]["name"] == "ours"
    with pytest.raises(NotFound):
        await reading.get(CONFIG_MAP, "theirs", "default")
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "new", "namespace": "default"}}
    await reading.apply(body, field_manager="test")
    assert [one["metadata"]["name"] for one in (await reading.list(CONFIG_MAP)).items] == ["ours"]


async def test_only_the_namespaces_watched_are_read(followed: Any, store: EmbeddedStore) -> None:
    for namespace in ("one", "two", "three"):
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "namespace": namespace}}
        await store.apply(body, field_manager="test")
    reading = await followed(None, ("one", "two"))
    found = (await reading.list(CONFIG_MAP)).items
    assert [one["metadata"]["namespace"] for one in found] == ["one", "two"]


async def test_calls_are_counted_by_verb_kind_and_outcome(store: EmbeddedStore) -> None:
    metered = MeteredStore(store)

    def count(verb: str, outcome: str) -> float:
        labels = {"verb": verb, "kind": "ConfigMap", "outcome": outcome}
        return REGISTRY.get_sample_value("belvedere_store_requests_total", labels) or 0.0

    before = count("apply", "ok"), count("get", "NotFound")
    await metered.apply(
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "namespace": "default"}},
        field_manager="test",
    )
    with pytest.raises(NotFound):
        await metered.get(CONFIG_MAP, "absent", "default")
    assert (count("apply", "ok"), count("get", "NotFound")) == (before[0] + 1, before[1] + 1)


def services_named(one: Manifest) -> tuple[str | None, ...]:
    return one["metadata"]["labels"].get("belvedere.dev/service"), None


CHANGES = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from(["x", "y"]), st.booleans()), min_size=1, max_size=30
)


@given(changes=CHANGES, order=st.randoms(use_true_random=False))
def test_whatever_order_news_comes_in_the_newest_stays(changes: Any, order: Any) -> None:
    """Each change of the history reaches the copy twice: by the watch, and by the answer to the write."""
    history = [
        (manifest(name, version, **{"belvedere.dev/service": service}), deleted)
        for version, (name, service, deleted) in enumerate(changes, 1)
    ]
    copies = Copies()
    copies.index("early", services_named)
    told = [*history, *((one, False) for one, deleted in history if not deleted)]
    # The watch keeps its order; answers come before or after the watch has said the same.
    order.shuffle(told)
    watched = iter(history)
    for one in told:
        one = next(watched, one) if one in history else one
        (copies.drop if one[1] else copies.put)(one[0])
    for one, deleted in history:
        (copies.drop if deleted else copies.put)(one)
    last = {one["metadata"]["name"]: (one, deleted) for one, deleted in history}
    expected = {name: one for name, (one, deleted) in last.items() if not deleted}
    found = {one["metadata"]["name"]: one for one in copies.all()}
    assert {name: found[name] for name in expected} == expected
    for service in "xy":
        labels = {"belvedere.dev/service": service}
        named = {one["metadata"]["name"] for one in copies.select("default", labels)}
        assert named == {name for name, one in found.items() if one["metadata"]["labels"] == labels}
        copies.index("late", services_named)
        for index in ("early", "late"):
            assert copies.naming(index, "default", service) == [Key("default", name) for name in sorted(named)]
            assert copies.naming(index, "elsewhere", service) == []


def test_a_list_takes_away_what_is_gone_but_not_what_was_learned_since() -> None:
    copies = Copies()
    for one in (manifest("gone", 3), manifest("kept", 4), manifest("new", 12), manifest("gone", 2, "elsewhere")):
        copies.put(one)
    vanished = copies.replace([manifest("kept", 4)], "default", "10")
    assert [one["metadata"]["name"] for one in vanished] == ["gone"]
    assert sorted(one["metadata"]["name"] for one in copies.all()) == ["gone", "kept", "new"]
