"""Lists and watches: nothing is missed between them, and labels decide what is seen."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from belvedere_platform.errors import NotFound
from belvedere_platform.store import Manifest, ObjectStore
from belvedere_platform.store.kinds import CONFIG_MAP, SECRET

Make = Callable[..., Manifest]
Watched = Callable[..., Awaitable[list[tuple[str, str]]]]


async def test_what_is_not_there_is_not_found(store: ObjectStore, namespace: str) -> None:
    with pytest.raises(NotFound, match="absent"):
        await store.get(CONFIG_MAP, "absent", namespace)


async def test_a_list_holds_one_kind_of_one_namespace(store: ObjectStore, namespace: str, config_map: Make) -> None:
    await store.apply(config_map("a"), field_manager="test")
    await store.apply({**config_map("b"), "kind": "Secret", "data": {}}, field_manager="test")
    listing = await store.list(SECRET, namespace)
    assert [item["metadata"]["name"] for item in listing.items] == ["b"]
    everywhere = {
        (item["metadata"]["namespace"], item["metadata"]["name"]) for item in (await store.list(CONFIG_MAP)).items
    }
    assert (namespace, "a") in everywhere
    assert (namespace, "b") not in everywhere


async def test_a_list_by_labels_needs_every_label(store: ObjectStore, namespace: str, config_map: Make) -> None:
    await store.apply(config_map("both", labels={"a": "1", "b": "2"}), field_manager="test")
    await store.apply(config_map("one", labels={"a": "1"}), field_manager="test")
    listing = await store.list(CONFIG_MAP, namespace, labels={"a": "1", "b": "2"})
    assert [item["metadata"]["name"] for item in listing.items] == ["both"]


async def test_a_watch_goes_on_where_a_list_ended(
    store: ObjectStore, namespace: str, config_map: Make, watched: Watched
) -> None:
    await store.apply(config_map("before"), field_manager="test")
    since = (await store.list(CONFIG_MAP, namespace)).resource_version
    await store.apply(config_map("a"), field_manager="test")
    await store.apply(config_map("a", {"colour": "red"}), field_manager="test")
    await store.apply(config_map("a", {"colour": "red"}), field_manager="test")
    await store.delete(CONFIG_MAP, "a", namespace)
    assert await watched(CONFIG_MAP, since, 3) == [("ADDED", "a"), ("MODIFIED", "a"), ("DELETED", "a")]


async def test_a_watch_sees_what_comes_later(
    store: ObjectStore, namespace: str, config_map: Make, watched: Watched
) -> None:
    since = (await store.list(CONFIG_MAP, namespace)).resource_version
    watching = asyncio.create_task(watched(CONFIG_MAP, since, 2))
    await asyncio.sleep(0)
    await store.apply(config_map("a"), field_manager="test")
    await store.apply(config_map("b"), field_manager="test")
    assert await watching == [("ADDED", "a"), ("ADDED", "b")]


async def test_a_watch_goes_on_after_any_event(
    store: ObjectStore, namespace: str, config_map: Make, watched: Watched
) -> None:
    await store.apply(config_map("a"), field_manager="test")
    changed = await store.apply(config_map("a", {"colour": "red"}), field_manager="test")
    await store.apply(config_map("b"), field_manager="test")
    assert await watched(CONFIG_MAP, changed["metadata"]["resourceVersion"], 1) == [("ADDED", "b")]


async def test_an_object_comes_and_goes_with_its_labels(
    store: ObjectStore, namespace: str, config_map: Make, watched: Watched
) -> None:
    since = (await store.list(CONFIG_MAP, namespace)).resource_version
    await store.apply(config_map("a"), field_manager="test")
    await store.apply(config_map("a", labels={"seen": "yes"}), field_manager="test")
    await store.apply(config_map("a", {"colour": "red"}, labels={"seen": "yes"}), field_manager="test")
    await store.apply(config_map("a", {"colour": "red"}, labels={"seen": "no"}), field_manager="test")
    changes = await watched(CONFIG_MAP, since, 3, labels={"seen": "yes"})
    assert changes == [("ADDED", "a"), ("MODIFIED", "a"), ("DELETED", "a")]


async def test_versions_only_grow(store: ObjectStore, namespace: str, config_map: Make) -> None:
    versions = [
        int(
            (await store.apply(config_map("a", {"count": str(number)}), field_manager="test"))["metadata"][
                "resourceVersion"
            ]
        )
        for number in range(5)
    ]
    assert versions == sorted(set(versions))
    assert int((await store.list(CONFIG_MAP, namespace)).resource_version) >= versions[-1]
