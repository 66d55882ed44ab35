"""Operator and gateway are replaced by their next version while clients ask: no model's pods start anew, and no request fails."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from belvedere_platform.store import Manifest
from belvedere_platform.store.kinds import ENDPOINT_SLICE, MODEL_SERVICE, RAY_SERVICE, TRAINING_RUN

from ..test_operator_killed import RUN, SERVICE, Day, eventually
from .cluster_parts import own_address
from .real_replicas import RealReplicas, a_day, answers, end
from .traffic import Load

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

SERVED: Manifest = {
    **SERVICE,
    "routing": {"default": True},
    # What is replaced stays warm, as it does outside of tests: routes and addresses reach a gateway by two watches.
    "rollout": {**SERVICE["rollout"], "keepStableSeconds": 60},
}


@pytest.fixture
async def day(kubeconfig: Path, namespace: str, tmp_path: Path) -> AsyncIterator[Day]:
    async with a_day(kubeconfig, namespace, tmp_path) as made:
        yield made


async def standing(day: Day) -> dict[str, Any]:
    """Return what a restarted pod would change: each server's generation, and each replica's address by its own identity."""
    services = (await day.store.list(RAY_SERVICE, day.namespace)).items
    slices = (await day.store.list(ENDPOINT_SLICE, day.namespace)).items
    return {
        **{one["metadata"]["uid"]: one["metadata"]["generation"] for one in services},
        **{one["metadata"]["uid"]: one["endpoints"][0]["addresses"] for one in slices},
    }


async def test_an_upgrade_restarts_no_model_and_loses_no_request(
    day: Day, start: Any, servers: Any, free_port: Any, tmp_path: Path, record_property: Any
) -> None:
    replicas = {version: await servers(version, address=own_address()) for version in ("v1", "v2")}
    assert isinstance(day.actors, RealReplicas)
    day.actors.servers = {f"emoji-{version}": [server] for version, server in replicas.items()}
    ports = {name: free_port() for name in ("xds", "metrics", "tap", "gateway", "admin")}
    flags = {name: f"--{name}-port={port}" for name, port in ports.items()}
    words = ("serve", "--store", f"kubernetes://?kubeconfig={day.kubeconfig}", "--watch-namespace", day.namespace)
    serve = partial(start, *words, flags["xds"], flags["metrics"], flags["tap"], f"--memory={tmp_path}/memory.json")
    operator, gateway = await day.start(None, "--image=belvedere:1"), await serve()
    load = Load(address=f"127.0.0.1:{ports['gateway']}")
    try:
        await start("envoy", f"--output={tmp_path}/envoy.json", flags["xds"], flags["gateway"], flags["admin"])
        day.artifacts.push("dataset", {"manifest.json": b"{}"}, config={}, tag="datasets/emoji")
        await day.apply(TRAINING_RUN, "v1", RUN)
        await day.apply(MODEL_SERVICE, "emoji", {**SERVED, "version": "v1"})
        await eventually(lambda: day.stable_is("v1"), "the first version to serve")
        await eventually(partial(answers, ports["gateway"]), "the gateway to answer")
        load.start(2)
        await load.more(20)
        before = await standing(day)
        assert len(before) == 2

        await end(operator)
        (tmp_path / "pods.yaml").write_text("all: {labels: {release: next}}")
        operator = await day.start(None, "--image=belvedere:2", f"--pod-defaults={tmp_path}/pods.yaml")
        await load.more(20)
        await end(gateway)
        await load.more(20)
        gateway = await serve()
        await load.more(20)
        after = await standing(day)

        # The new operator does all that the old one did, and a gateway that was away meanwhile follows.
        await day.apply(TRAINING_RUN, "v2", RUN)
        wish = {
            "annotations": {
                "belvedere.dev/rollout-request": json.dumps({"verb": "promote", "candidate": "v2", "id": "1"})
            }
        }
        await end(gateway)
        await day.apply(MODEL_SERVICE, "emoji", {**SERVED, "version": "v2"}, **wish)
        await eventually(lambda: day.stable_is("v2"), "the second version to be promoted")
        await serve()
        await eventually(partial(answers, ports["gateway"], "v2"), "the second version to answer")
        await load.more(20)
    finally:
        await load.stop()
        await end(operator)
    record_property("upgrade_pods_restarted", len(before.items() ^ after.items()))
    record_property("upgrade_failed_requests", sum(load.errors.values()))
    assert after == before
    assert load.errors == {}
