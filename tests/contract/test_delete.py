"""Deletion: finalizers hold it back, and what has no owner left goes too."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from belvedere_platform.errors import Conflict, NotFound
from belvedere_platform.store import Kind, Manifest, ObjectStore
from belvedere_platform.store.kinds import CONFIG_MAP, TRAINING_RUN

Make = Callable[..., Manifest]
OwnedBy = Callable[..., dict[str, Any]]
Gone = Callable[[Kind, str, str], Awaitable[None]]
FINALIZER = "belvedere.dev/tested"


async def test_what_is_not_there_cannot_be_deleted(store: ObjectStore, namespace: str) -> None:
    with pytest.raises(NotFound, match="absent"):
        await store.delete(CONFIG_MAP, "absent", namespace)


async def test_a_deleted_object_is_gone_and_its_name_is_free(
    store: ObjectStore, namespace: str, config_map: Make
) -> None:
    first = await store.apply(config_map(), field_manager="test")
    await store.delete(CONFIG_MAP, "settings", namespace)
    with pytest.raises(NotFound):
        await store.get(CONFIG_MAP, "settings", namespace)
    assert (await store.apply(config_map(), field_manager="test"))["metadata"]["uid"] != first["metadata"]["uid"]


async def test_a_stale_precondition_is_a_conflict(store: ObjectStore, namespace: str, config_map: Make) -> None:
    stale = (await store.apply(config_map(), field_manager="test"))["metadata"]["resourceVersion"]
    current = await store.apply(config_map(data={"colour": "red"}), field_manager="test")
    with pytest.raises(Conflict):
        await store.delete(CONFIG_MAP, "settings", namespace, resource_version=stale)
    await store.delete(CONFIG_MAP, "settings", namespace, resource_version=current["metadata"]["resourceVersion"])


async def test_a_finalizer_holds_an_object_until_it_is_removed(
    store: ObjectStore, namespace: str, training_run: Make
) -> None:
    held = training_run(metadata={"finalizers": [FINALIZER]})
    await store.apply(held, field_manager="test")
    await store.delete(TRAINING_RUN, "run", namespace)
    waiting = await store.get(TRAINING_RUN, "run", namespace)
    assert waiting["metadata"]["deletionTimestamp"]
    assert waiting["metadata"]["generation"] == 2
    await store.delete(TRAINING_RUN, "run", namespace)
    observed = await store.apply_status(held | {"status": {"phase": "Failed"}}, field_manager="test")
    assert observed["status"] == {"phase": "Failed"}
    await store.apply(training_run(), field_manager="test")
    with pytest.raises(NotFound):
        await store.get(TRAINING_RUN, "run", namespace)


async def test_what_an_object_owns_goes_with_it(
    store: ObjectStore, namespace: str, config_map: Make, owned_by: OwnedBy, gone: Gone
) -> None:
    owner = await store.apply(config_map("owner"), field_manager="test")
    child = await store.apply(config_map("child", **owned_by(owner)), field_manager="test")
    await store.apply(config_map("grandchild", **owned_by(child)), field_manager="test")
    await store.apply(config_map("stranger"), field_manager="test")
    await store.delete(CONFIG_MAP, "owner", namespace)
    for name in ("owner", "child", "grandchild"):
        await gone(CONFIG_MAP, name, namespace)
    assert await store.get(CONFIG_MAP, "stranger", namespace)


async def test_a_child_with_another_owner_stays(
    store: ObjectStore, namespace: str, config_map: Make, owned_by: OwnedBy, gone: Gone
) -> None:
    one = await store.apply(config_map("one"), field_manager="test")
    two = await store.apply(config_map("two"), field_manager="test")
    await store.apply(config_map("child", **owned_by(one, two)), field_manager="test")
    await store.apply(config_map("witness", **owned_by(one)), field_manager="test")
    await store.delete(CONFIG_MAP, "one", namespace)
    await gone(CONFIG_MAP, "witness", namespace)
    assert await store.get(CONFIG_MAP, "child", namespace)
    await store.delete(CONFIG_MAP, "two", namespace)
    await gone(CONFIG_MAP, "child", namespace)


async def test_an_orphan_stays(
    store: ObjectStore, namespace: str, config_map: Make, owned_by: OwnedBy, gone: Gone
) -> None:
    owner = await store.apply(config_map("owner"), field_manager="test")
    await store.apply(config_map("child", **owned_by(owner)), field_manager="test")
    await store.delete(CONFIG_MAP, "owner", namespace, propagation="Orphan")
    await gone(CONFIG_MAP, "owner", namespace)
    assert "ownerReferences" not in (await store.get(CONFIG_MAP, "child", namespace))["metadata"]


async def test_in_the_foreground_children_go_first(
    store: ObjectStore, namespace: str, config_map: Make, owned_by: OwnedBy, gone: Gone
) -> None:
    owner = await store.apply(config_map("owner"), field_manager="test")
    held = config_map("child", finalizers=[FINALIZER], **owned_by(owner))
    await store.apply(held, field_manager="test")
    await store.delete(CONFIG_MAP, "owner", namespace, propagation="Foreground")
    waiting = await store.get(CONFIG_MAP, "owner", namespace)
    assert waiting["metadata"]["deletionTimestamp"]
    assert waiting["metadata"]["finalizers"] == ["foregroundDeletion"]
    await store.apply(config_map("child", **owned_by(owner)), field_manager="test")
    await gone(CONFIG_MAP, "child", namespace)
    await gone(CONFIG_MAP, "owner", namespace)


async def test_a_child_of_an_owner_that_is_gone_goes_too(
    store: ObjectStore, namespace: str, config_map: Make, owned_by: OwnedBy, gone: Gone
) -> None:
    owner = await store.apply(config_map("owner"), field_manager="test")
    await store.delete(CONFIG_MAP, "owner", namespace)
    await store.apply(config_map("late", **owned_by(owner)), field_manager="test")
    await gone(CONFIG_MAP, "late", namespace)
