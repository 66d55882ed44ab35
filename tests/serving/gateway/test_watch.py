"""Which namespaces the gateway follows."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from belvedere_platform.store.embedded import EmbeddedStore
from belvedere_platform.store.kinds import CONFIG_MAP
from belvedere_serving.gateway.watch import Observed, Watcher

MANAGER = "belvedere-test"


def route_map(namespace: str, route: Any) -> dict[str, Any]:
    text = route({"v1": 100}).model_copy(update={"namespace": namespace}).model_dump_json(by_alias=True)
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": "emoji-gateway",
            "namespace": namespace,
            "labels": {"belvedere.dev/service": "emoji", "app.kubernetes.io/managed-by": "belvedere"},
        },
        "data": {"route.json": text},
    }


@pytest.mark.parametrize(("namespaces", "seen"), [((), {"a", "b", "c"}), (("a", "c"), {"a", "c"})], ids=["all", "some"])
async def test_only_the_namespaces_given_are_followed(
    tmp_path: Path, route: Any, namespaces: tuple[str, ...], seen: set[str]
) -> None:
    store, observed, complete = EmbeddedStore(tmp_path / "store.db"), Observed(), asyncio.Event()
    for namespace in ("a", "b", "c"):
        await store.apply(route_map(namespace, route), field_manager=MANAGER)
    watcher = Watcher(store, observed, complete.set, namespaces=namespaces)
    running = asyncio.create_task(watcher.run())
    try:
        await asyncio.wait_for(complete.wait(), 60)
        assert {namespace for namespace, _ in observed.routes} == seen
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await store.close()


def test_a_listing_of_one_namespace_says_nothing_of_the_others(route: Any) -> None:
    observed = Observed()
    observed.replace_all(CONFIG_MAP, [route_map("a", route)], "a")
    observed.replace_all(CONFIG_MAP, [route_map("b", route)], "b")
    observed.replace_all(CONFIG_MAP, [], "a")
    assert {namespace for namespace, _ in observed.routes} == {"b"}
