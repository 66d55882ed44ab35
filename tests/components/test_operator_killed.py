"""An operator that is killed again and again while versions are trained, served and replaced ends where an undisturbed one does.

With BELVEDERE_KILL_SECONDS=300 (`make operator-killed`) it is killed every five seconds for so long, and its line to the API
server is cut in between; without, a few times.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest
from kubernetes import client, config

from belvedere_platform.artifacts import ArtifactStore
from belvedere_platform.errors import NotFound
from belvedere_platform.ports import free_port
from belvedere_platform.resources.base import API_VERSION
from belvedere_platform.store import Kind, Manifest
from belvedere_platform.store.kinds import (
    CONFIG_MAP,
    ENDPOINT_SLICE,
    ENGINE,
    JOB,
    MODEL_SERVICE,
    MODEL_VERSION,
    POD_DISRUPTION_BUDGET,
    PROMETHEUS_RULE,
    RAY_JOB,
    RAY_SERVICE,
    TRAINING_RUN,
)
from belvedere_platform.store.kubernetes import KubernetesStore

from ..helm.actors import Actors
from .older import BELVEDERE, environment_of
from .test_gateway.wire import Wire, over, wire_to

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

KINDS = (
    TRAINING_RUN, RAY_JOB, MODEL_VERSION, ENGINE, JOB, MODEL_SERVICE, RAY_SERVICE,
    CONFIG_MAP, PROMETHEUS_RULE, POD_DISRUPTION_BUDGET, ENDPOINT_SLICE,
)  # fmt: skip
KILL_SECONDS = float(os.environ.get("BELVEDERE_KILL_SECONDS", 0))
PERIOD_SECONDS = 5.0
NUM_KILLS = round(KILL_SECONDS / PERIOD_SECONDS) or 4
NUM_VERSIONS = 2 + (NUM_KILLS if KILL_SECONDS else 0)
"""How many versions there are on each of the two days, one after the other: a replacement takes about as long as a kill."""
LIMIT_SECONDS = 120.0 + KILL_SECONDS
RUN: Manifest = {"model": "clip", "data": {"dataset": "emoji"}, "optimization": {"pairs": 1000}}
SERVICE: Manifest = {
    "model": "clip",
    "scaling": {"minReplicas": 1, "maxReplicas": 2},
    "rollout": {"steps": [{"weight": 50, "holdSeconds": 1}], "intervalSeconds": 1, "keepStableSeconds": 0},
}


class Day:
    """One namespace in which the same things are asked for, and one operator process at a time."""

    def __init__(self, kubeconfig: Path, namespace: str, folder: Path) -> None:
        self.kubeconfig, self.namespace, self.folder = kubeconfig, namespace, folder
        self.store = KubernetesStore(kubeconfig=str(kubeconfig))
        self.artifacts = ArtifactStore(str(folder / "artifacts"))
        self.actors = Actors(self.store, namespace, self.artifacts)
        self.survived = asyncio.Event()
        """Set when the last operator that is killed has been."""
        self.port = free_port()

    async def start(
        self, kubeconfig: Path | None = None, *more: str, tree: Path | None = None
    ) -> asyncio.subprocess.Process:
        """Start an operator, of this state or of an older one, and return it when it acts."""
        secret = self.folder / "secret"
        secret.write_text("hush")
        with (self.folder / "operator.log").open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *BELVEDERE, "operator", f"--store=kubernetes://?kubeconfig={kubeconfig or self.kubeconfig}",
                f"--artifacts={self.artifacts.url}", "--address=127.0.0.1", f"--port={self.port}",
                f"--alerts-secret-file={secret}", "--prometheus-url=http://127.0.0.1:9",
                f"--watch-namespace={self.namespace}", *more,
                stderr=log, env=environment_of(tree),
            )  # fmt: skip
        async with httpx.AsyncClient(trust_env=False, timeout=60) as http:

            async def ready() -> bool:
                assert process.returncode is None
                with contextlib.suppress(httpx.HTTPError):
                    return (await http.get(f"http://127.0.0.1:{self.port}/readyz")).is_success
                return False

            try:
                await eventually(ready, "the operator to be ready")
            except BaseException:
                process.kill()
                await process.wait()
                raise
        return process

    async def operate(self, kills: int) -> None:
        """Keep an operator running; so many are killed, each a little after it began to act and lost its line for once."""
        line = wire_to(self.kubeconfig)
        await line.open()
        # Both days have a line, as each operator tells its children by what way it reaches the store.
        near = over(line, self.kubeconfig, self.folder / "kubeconfig")
        try:
            random = Random(7)
            for _ in range(kills):
                await self.kill_one(near, line, random)
            self.survived.set()
            process = await self.start(near)
            try:
                await asyncio.Event().wait()
            finally:
                process.send_signal(signal.SIGTERM)
                await process.wait()
        finally:
            await line.close()

    async def kill_one(self, near: Path, line: Wire, random: Random) -> None:
        """Start an operator, cut it off and kill it: at once, while it is cut off, or when it has been back for a while."""
        process = await self.start(near)
        try:
            longest = PERIOD_SECONDS if KILL_SECONDS else 1.0
            moments = sorted(random.uniform(0.05, longest) for _ in range(3))
            await asyncio.sleep(moments[0])
            await line.close()
            await asyncio.sleep(min(0.5, moments[1] - moments[0]))
            await line.open()
            await asyncio.sleep(moments[2] - moments[1])
        finally:
            process.kill()
            await process.wait()

    async def ask(self) -> None:
        """Train versions, serve the first, and replace each by the next as a person wants it."""
        self.artifacts.push("dataset", {"manifest.json": b"{}"}, config={}, tag="datasets/emoji")
        await self.apply(TRAINING_RUN, "v1", RUN)
        await self.apply(MODEL_SERVICE, "emoji", {**SERVICE, "version": "v1"})
        await eventually(lambda: self.stable_is("v1"), "the first version to serve")
        for number in range(2, NUM_VERSIONS + 1):
            version = f"v{number}"
            await self.apply(TRAINING_RUN, version, RUN)
            wish = json.dumps({"verb": "promote", "candidate": version, "id": f"{number}"})
            asked = {"annotations": {"belvedere.dev/rollout-request": wish}}
            await self.apply(MODEL_SERVICE, "emoji", {**SERVICE, "version": version}, **asked)
            await eventually(partial(self.stable_is, version), f"{version} to be promoted")
            await eventually(partial(self.is_alone, version), f"what was before {version} to be retired")
        await self.survived.wait()

    async def apply(self, kind: Kind, name: str, spec: Manifest, **more: Any) -> None:
        metadata = {"name": name, "namespace": self.namespace, **more}
        manifest = {"apiVersion": API_VERSION, "kind": kind.kind, "metadata": metadata, "spec": spec}
        await self.store.apply(manifest, field_manager="person")

    async def stable_is(self, version: str) -> bool:
        try:
            status = (await self.store.get(MODEL_SERVICE, "emoji", self.namespace)).get("status") or {}
        except NotFound:
            return False
        ready = {one["type"]: one["status"] for one in status.get("conditions", ())}.get("Ready")
        return (status.get("stable") or {}).get("version") == version and ready == "True"

    async def is_alone(self, version: str) -> bool:
        services = (await self.store.list(RAY_SERVICE, self.namespace)).items
        return [one["metadata"]["name"] for one in services] == [f"emoji-{version}"]

    async def end(self) -> dict[str, Any]:
        """Return everything that there is, without what no two days share."""
        return {
            f"{kind.kind}/{one['metadata']['name']}": self.comparable(one)
            for kind in KINDS
            for one in (await self.store.list(kind, self.namespace)).items
        }

    def comparable(self, one: Manifest) -> Any:
        metadata = {
            "labels": one["metadata"].get("labels"),
            "owners": [owner["name"] for owner in one["metadata"].get("ownerReferences", ())],
        }
        body = {name: value for name, value in one.items() if name not in ("metadata", "status")}
        status = one.get("status") or {}
        seen = {
            "conditions": {each["type"]: (each["status"], each.get("reason")) for each in status.get("conditions", ())},
            **{name: status.get(name) for name in ("phase", "attempt", "modelVersion", "digest", "replicas", "url")},
            **{side: (status.get(side) or {}).get("version") for side in ("stable", "candidate")},
            "rollout": (status.get("rollout") or {}).get("phase"),
        }
        if "evidence.json" in body.get("data", {}):
            journal = json.loads(body["data"]["evidence.json"])
            kept = {name: journal.get(name) for name in ("stable", "served", "engines", "retiring", "handledRequest")}
            body = {"journal": kept, "rollout": journal["rollout"]["phase"]}
        if one["kind"] == "RayJob":
            # Tells the trainer the uid of its run.
            del body["spec"]["runtimeEnvYAML"]
        if one["kind"] == "Job":
            # The API server adds a selector of its own, by the Job's uid.
            body = {"pod": body["spec"]["template"]["spec"]}
        text = json.dumps({**body, "metadata": metadata, "seen": seen}, sort_keys=True)
        return json.loads(text.replace(self.namespace, "NAMESPACE").replace(str(self.folder), "FOLDER"))


async def eventually(check: Callable[[], Awaitable[bool]], what: str) -> None:
    """Ask until the answer is true: what other processes come to cannot be awaited."""
    deadline = asyncio.get_running_loop().time() + LIMIT_SECONDS
    while not await check():
        assert asyncio.get_running_loop().time() < deadline, f"waited {LIMIT_SECONDS:.0f} s for {what}"
        await asyncio.sleep(0.2)


@pytest.fixture
async def make_day(kubeconfig: Path, tmp_path: Path) -> AsyncIterator[Callable[[str], Awaitable[Day]]]:
    """Make a day in a namespace and a folder of its own."""
    made: list[Day] = []

    async def make(name: str) -> Day:
        folder = tmp_path / name
        folder.mkdir()
        day = Day(kubeconfig, f"killed-{uuid.uuid4().hex[:8]}", folder)
        with _namespaces(kubeconfig) as namespaces:
            await asyncio.to_thread(namespaces.create_namespace, {"metadata": {"name": day.namespace}})
        await dashboards.enter_async_context(day.actors.dashboard())
        made.append(day)
        return day

    async with contextlib.AsyncExitStack() as dashboards:
        yield make
    for day in made:
        await day.store.close()
        with _namespaces(kubeconfig) as namespaces:
            await asyncio.to_thread(namespaces.delete_namespace, day.namespace)


@contextlib.contextmanager
def _namespaces(kubeconfig: Path) -> Iterator[client.CoreV1Api]:
    with config.new_client_from_config(str(kubeconfig)) as api:
        yield client.CoreV1Api(api)


@contextlib.asynccontextmanager
async def living(day: Day, kills: int) -> AsyncIterator[Awaitable[None]]:
    """Live a day for the time of a with block; gives what ends when all that was asked for is there."""
    acting = [asyncio.create_task(day.actors.run()), asyncio.create_task(day.operate(kills))]
    asking = asyncio.create_task(day.ask())

    async def asked() -> None:
        await asyncio.wait([*acting, asking], return_when=asyncio.FIRST_COMPLETED)
        for task in acting:
            if task.done():
                task.result()
        await asking

    try:
        yield asked()
    finally:
        for task in (*acting, asking):
            task.cancel()
        await asyncio.gather(*acting, asking, return_exceptions=True)


async def compared(quiet: Day, hard: Day) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return how both days end: a busy machine takes its time for what follows from the last change."""
    deadline = asyncio.get_running_loop().time() + LIMIT_SECONDS
    while True:
        undisturbed, killed = await quiet.end(), await hard.end()
        if killed == undisturbed or asyncio.get_running_loop().time() > deadline:
            return undisturbed, killed
        await asyncio.sleep(0.5)


async def test_killed_again_and_again_it_ends_in_the_same_state(make_day: Callable[[str], Awaitable[Day]]) -> None:
    quiet, hard = await make_day("quiet"), await make_day("hard")
    async with living(quiet, 0) as one_asked, living(hard, NUM_KILLS) as other_asked:
        await asyncio.gather(one_asked, other_asked)
        # Nothing more may come than what follows from the last change, and that is written within a look.
        await asyncio.sleep(3)
        undisturbed, killed = await compared(quiet, hard)
    assert undisturbed["ModelService/emoji"]["seen"]["stable"] == f"v{NUM_VERSIONS}"
    assert set(killed) == set(undisturbed)
    for name, one in undisturbed.items():
        assert killed[name] == one, name
