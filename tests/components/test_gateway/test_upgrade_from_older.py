"""An older state of Belvedere becomes this one: definitions, operator and gateway, while services are asked and runs are trained.

`make upgrade-test FROM=REF` unpacks the older state and says where by BELVEDERE_UPGRADE_FROM.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from belvedere_platform.errors import BelvedereError, NotInstalled
from belvedere_platform.resources.base import GROUP
from belvedere_platform.store import Kind, Manifest
from belvedere_platform.store.kinds import (
    DEPLOYMENT,
    ENDPOINT_SLICE,
    ENGINE,
    EVENT,
    JOB,
    KINDS,
    LEASE,
    MODEL_SERVICE,
    MODEL_VERSION,
    RAY_JOB,
    RAY_SERVICE,
    TRAINING_RUN,
)
from containing import contains
from control_plane import install_definitions
from control_plane_process import control_plane_or_skip
from instance import tls
from operator_process import WRITES

from ..test_operator_killed import RUN, SERVICE, Day, eventually
from .cluster_parts import own_address
from .real_replicas import RealReplicas, a_day, answers, end
from .traffic import Load

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

ROOT = Path(__file__).resolve().parents[3]
DEFINITIONS = Path("helm/belvedere/files/crds")
NAMESPACE = "upgraded"
OWN = (TRAINING_RUN, MODEL_VERSION, ENGINE, MODEL_SERVICE)
PODS = (RAY_SERVICE, RAY_JOB, JOB, DEPLOYMENT)
"""Whose spec is their pods': a new generation of one starts pods anew."""
QUIET_SECONDS = 5.0
NUM_MORE = 3
SERVED: Manifest = {**SERVICE, "rollout": {**SERVICE["rollout"], "keepStableSeconds": 60}}
FRESH = ("resourceVersion", "managedFields", "generation")
"""What every write may change and nobody reads."""


@pytest.fixture
def older() -> Path:
    """The tree of the older state."""
    folder = os.environ.get("BELVEDERE_UPGRADE_FROM")
    if not folder:
        pytest.skip("no older state is named: make upgrade-test FROM=REF")
    return Path(folder)


@pytest.fixture
def own_kubeconfig(older: Path, tmp_path: Path) -> Iterator[Path]:
    """The kubeconfig of a control plane whose definitions no other test needs."""
    with control_plane_or_skip(tmp_path / "control-plane") as path:
        yield path


@pytest.fixture
async def day(own_kubeconfig: Path, tmp_path: Path) -> AsyncIterator[Day]:
    async with a_day(own_kubeconfig, NAMESPACE, tmp_path) as made:
        yield made


class Cluster:
    """All that stands in the namespace, and what changes of it."""

    def __init__(self, day: Day) -> None:
        self.day = day

    async def define(self, tree: Path) -> None:
        """Install the definitions of a state."""
        server = yaml.safe_load(self.day.kubeconfig.read_text())["clusters"][0]["cluster"]["server"]
        certificates = self.day.kubeconfig.parent / "certificates"
        async with httpx.AsyncClient(verify=tls(certificates), trust_env=False, timeout=30) as http:
            await install_definitions(http, server, sorted((tree / DEFINITIONS).glob("*.yaml")))
            await http.post(f"{server}/api/v1/namespaces", json={"metadata": {"name": NAMESPACE}})

    async def stored_versions(self) -> Iterator[tuple[set[str], set[str]]]:
        """Return for each kind of ours which versions are stored, and which are served."""
        server = yaml.safe_load(self.day.kubeconfig.read_text())["clusters"][0]["cluster"]["server"]
        certificates = self.day.kubeconfig.parent / "certificates"
        async with httpx.AsyncClient(verify=tls(certificates), trust_env=False, timeout=30) as http:
            path = f"{server}/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
            found = [(await http.get(f"{path}/{kind.plural}.{GROUP}")).json() for kind in OWN]
        return (
            (set(one["status"]["storedVersions"]), {each["name"] for each in one["spec"]["versions"] if each["served"]})
            for one in found
        )

    async def all(self) -> dict[str, Manifest]:
        """Return every object but Events and Leases."""
        found: dict[str, Manifest] = {}
        for kind in (one for one in KINDS if one.namespaced and one not in (EVENT, LEASE)):
            try:
                items = (await self.day.store.list(kind, NAMESPACE)).items
            except NotInstalled:
                continue
            found |= {f"{kind.kind}/{one['metadata']['name']}": one for one in items}
        return found

    async def settled(self) -> dict[str, Manifest]:
        """Return every object when none has changed for a while."""
        seen: list[dict[str, Manifest]] = [{}]

        async def quiet() -> bool:
            seen.append(await self.all())
            await asyncio.sleep(QUIET_SECONDS)
            return _versions(seen[-1]) == _versions(await self.all())

        await eventually(quiet, "all objects to stand")
        return seen[-1]

    async def writes(self) -> Counter[str]:
        """Return the operator's writes, by kind."""
        async with httpx.AsyncClient(trust_env=False, timeout=60) as http:
            text = (await http.get(f"http://127.0.0.1:{self.day.port}/metrics")).text
        matches = (WRITES.match(line) for line in text.splitlines())
        found: Counter[str] = Counter()
        for match in matches:
            if match and float(match.group(2)):
                found[match.group(1)] += int(float(match.group(2)))
        return found


def _versions(objects: dict[str, Manifest]) -> dict[str, str]:
    return {name: one["metadata"]["resourceVersion"] for name, one in objects.items()}


def pods(objects: dict[str, Manifest]) -> dict[str, Any]:
    """Return what a restarted pod would change: the spec of all that has pods, and where replicas are reached."""
    kinds = tuple(f"{kind.kind}/" for kind in PODS)
    slices = f"{ENDPOINT_SLICE.kind}/"
    return {
        name: one["endpoints"] if name.startswith(slices) else (one["metadata"]["uid"], one["spec"])
        for name, one in objects.items()
        if name.startswith((*kinds, slices))
    }


def read_of(one: Manifest) -> dict[str, Any]:
    """Return what someone reads of an object, by path."""
    metadata = {name: value for name, value in one["metadata"].items() if name not in FRESH}
    return dict(_leaves({**one, "metadata": metadata}, ""))


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    if not pairs:
        yield path, value
    for name, below in pairs:
        yield from _leaves(below, f"{path}.{name}")


def changes(before: dict[str, Manifest], after: dict[str, Manifest]) -> dict[str, dict[str, tuple[Any, Any]]]:
    """Return what became of each object that was written since: by path, what was read and what is. A needless write has none."""
    found = {}
    for name, one in after.items():
        was = before.get(name)
        if was is None or was["metadata"]["resourceVersion"] != one["metadata"]["resourceVersion"]:
            old, new = read_of(was or {"metadata": {}}), read_of(one)
            found[name] = {path: (old.get(path), new.get(path)) for path in old | new if old.get(path) != new.get(path)}
    return found


def examples(older: Path) -> Iterator[tuple[Kind, str, Manifest]]:
    """Return the older state's own examples, each under a name of its own and routed to by nobody."""
    kinds = {kind.kind: kind for kind in OWN}
    for path in sorted((older / "deploy" / "examples").rglob("*.yaml")):
        for number, one in enumerate(yaml.safe_load_all(path.read_text())):
            if one and one.get("kind") in kinds:
                spec = {name: value for name, value in one["spec"].items() if name != "routing"}
                name = f"{path.parent.name}-{path.stem}-{number}".replace("_", "-")
                yield kinds[one["kind"]], name, spec


async def fill(cluster: Cluster, older: Path) -> None:
    """Have the older operator train, serve and hold what it can."""
    day = cluster.day
    day.artifacts.push("dataset", {"manifest.json": b"{}"}, config={}, tag="datasets/emoji")
    await day.apply(TRAINING_RUN, "v1", RUN)
    await day.apply(MODEL_SERVICE, "emoji", {**SERVED, "version": "v1", "routing": {"default": True}})
    for number in range(NUM_MORE):
        scaling = {"minReplicas": 1 + number % 2, "maxReplicas": 2 + number}
        await day.apply(MODEL_SERVICE, f"more-{number}", {**SERVED, "version": "v1", "scaling": scaling})
    for kind, name, spec in examples(older):
        try:
            await day.apply(kind, name, spec)
        except BelvedereError as error:
            print(f"upgrade: the older API server refuses {kind.kind} {name}: {error}")


async def refuse(cluster: Cluster) -> None:
    """Have the older operator abort a candidate, which nobody asks for again."""
    day, name = cluster.day, "refused"

    async def status() -> Manifest:
        return (await day.store.get(MODEL_SERVICE, name, NAMESPACE)).get("status") or {}

    async def serves() -> bool:
        return ((await status()).get("stable") or {}).get("routableReplicas") == 1

    async def aborted() -> bool:
        # Replicas that were asked for in the moment of the abort come and go after it.
        gone = f"{RAY_SERVICE.kind}/{name}-other" not in await cluster.settled()
        return gone and ((await status()).get("rollout") or {}).get("phase") == "Aborted"

    await day.apply(TRAINING_RUN, "other", RUN)
    await day.apply(MODEL_SERVICE, name, {**SERVED, "version": "v1"})
    await eventually(serves, "the service to serve")
    wish = {"belvedere.dev/rollout-request": json.dumps({"verb": "abort", "candidate": "other", "id": "1"})}
    await day.apply(MODEL_SERVICE, name, {**SERVED, "version": "other"}, annotations=wish)
    await eventually(aborted, "the candidate to be refused")


@pytest.mark.parametrize("first", ["operator", "gateway"])
async def test_an_older_version_is_followed_by_this_one(
    first: str, day: Day, older: Path, start: Any, servers: Any, free_port: Any, tmp_path: Path
) -> None:
    replicas = {version: await servers(version, address=own_address()) for version in ("v1", "v2")}
    assert isinstance(day.actors, RealReplicas)
    day.actors.servers = {f"emoji-{version}": [server] for version, server in replicas.items()}
    day.actors.servers["refused-v1"] = [replicas["v1"]]
    day.actors.servers |= {f"more-{number}-v1": [replicas["v1"]] * 2 for number in range(NUM_MORE)}
    ports = {name: free_port() for name in ("xds", "metrics", "tap", "gateway", "admin")}
    flags = {name: f"--{name}-port={port}" for name, port in ports.items()}
    words = ("serve", "--store", f"kubernetes://?kubeconfig={day.kubeconfig}", f"--memory={tmp_path}/memory.json")
    serve = partial(start, *words, flags["xds"], flags["metrics"], flags["tap"])
    cluster, load = Cluster(day), Load(address=f"127.0.0.1:{ports['gateway']}")
    await cluster.define(older)
    running = {"operator": await day.start(None, "--image=belvedere:1", tree=older), "gateway": await serve(tree=older)}
    (tmp_path / "pods.yaml").write_text("all: {labels: {release: next}}")

    async def replace(part: str) -> None:
        await end(running[part])
        if part == "operator":
            more = ("--image=belvedere:2", f"--pod-defaults={tmp_path}/pods.yaml")
            running[part] = await day.start(None, *more)
        else:
            running[part] = await serve()
        await load.more(20)

    try:
        await start("envoy", f"--output={tmp_path}/envoy.json", flags["xds"], flags["gateway"], flags["admin"])
        await fill(cluster, older)
        await eventually(lambda: day.stable_is("v1"), "the first version to serve")
        await refuse(cluster)
        await eventually(partial(answers, ports["gateway"]), "the gateway to answer")
        load.start(2)
        before = await cluster.settled()

        await cluster.define(ROOT)
        defined = await cluster.settled()
        assert pods(defined) == pods(before)
        for part in (first, *({"operator", "gateway"} - {first})):
            await replace(part)
        after = await cluster.settled()
        writes = await cluster.writes()
        told = changes(defined, after)
        kinds = Counter(name.partition("/")[0] for name in told)
        print(f"upgrade: {first} first: {len(after)} objects, {dict(kinds)} changed, {dict(writes)} written")
        for name, fields in told.items():
            print(f"upgrade: {name}: {', '.join(fields)}")
        assert pods(after) == pods(before)
        assert after["ModelService/refused"]["status"]["rollout"]["phase"] == "Aborted"
        assert [name for name, fields in told.items() if not fields] == []
        for name, one in before.items():
            assert after[name]["metadata"]["uid"] == one["metadata"]["uid"], name
            if one["kind"] in {kind.kind for kind in OWN}:
                assert contains(after[name]["spec"], one["spec"]), name
        for stored, served in await cluster.stored_versions():
            assert stored <= served

        # What was asked for once is asked for again by who knows the older fields alone: nothing follows from it.
        await fill(cluster, older)
        assert pods(await cluster.settled()) == pods(before)
        # A roll alone writes what a newer version says anew; another start of it has nothing to say.
        standing = await cluster.settled()
        await replace("operator")
        assert changes(standing, await cluster.settled()) == {}
        assert await cluster.writes() == {}

        await day.apply(TRAINING_RUN, "v2", RUN)
        wish = json.dumps({"verb": "promote", "candidate": "v2", "id": "1"})
        asked = {**SERVED, "version": "v2", "routing": {"default": True}}
        await day.apply(MODEL_SERVICE, "emoji", asked, annotations={"belvedere.dev/rollout-request": wish})
        await eventually(lambda: day.stable_is("v2"), "the second version to be promoted")
        await eventually(partial(answers, ports["gateway"], "v2"), "the second version to answer")
        await load.more(20)
    finally:
        await load.stop()
        await end(running["operator"])
    print(f"upgrade: {sum(load.answers.values())} requests, {load.errors or 'none'} failed")
    assert load.errors == {}
