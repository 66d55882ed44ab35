"""TrainingRuns in a queue of the real Kueue: admitted as a whole or not at all, told of it, taken back and let go on.

Kueue's controller and webhooks run beside a control plane of this test's own. No pod runs, so KubeRay's part is played.
"""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from belvedere_operators.controllers.context import Settings
from belvedere_operators.controlplane.cluster import ClusterOperator
from belvedere_operators.runtime import SystemClock
from belvedere_platform.artifacts import ArtifactStore
from belvedere_platform.resources.base import API_VERSION
from belvedere_platform.store import Manifest
from belvedere_platform.store.kinds import EVENT, RAY_JOB, TRAINING_RUN
from belvedere_platform.store.kubernetes import KubernetesStore
from control_plane_process import control_plane_or_skip

from .queues import Kueue, eventually, make_queue

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

ROOT = Path(__file__).resolve().parents[2]
NAMESPACE = "team"
ACCELERATORS = 2


@pytest.fixture
def built() -> Path:
    """Where Kueue was built; skips where it was not."""
    where = subprocess.run([ROOT / "deploy" / "cluster" / "kueue.sh", "--where"], check=True, capture_output=True)
    folder = Path(where.stdout.decode().strip())
    if not (folder / "webhooks.yaml").exists():
        pytest.skip("Kueue is not built: make kueue")
    return folder


@pytest.fixture
def own_kubeconfig(built: Path, tmp_path: Path) -> Iterator[Path]:
    """The kubeconfig of a control plane that no other test has: Kueue's webhooks stand before every RayJob of it."""
    with control_plane_or_skip(tmp_path / "control-plane") as path:
        yield path


class Team:
    """A namespace with runs, and KubeRay's part of them."""

    def __init__(self, store: KubernetesStore, artifacts: ArtifactStore) -> None:
        self.store, self._artifacts = store, artifacts
        self.finished: set[str] = set()
        """The runs whose job is through."""

    async def ask(self, name: str, workers: int) -> None:
        """Ask for a run with so many workers, each with an accelerator."""
        spec = {
            "model": "clip",
            "data": {"dataset": "emoji"},
            "optimization": {"pairs": 1000},
            "workers": {"min": 1, "max": workers, "resources": {"gpu": 1}},
            "queue": "research",
        }
        metadata = {"name": name, "namespace": NAMESPACE}
        run = {"apiVersion": API_VERSION, "kind": "TrainingRun", "metadata": metadata, "spec": spec}
        await self.store.apply(run, field_manager="test")

    async def wait_for(self, name: str, reason: str) -> None:
        """Return when the run's Ready says so."""

        async def says() -> bool:
            status = (await self.store.get(TRAINING_RUN, name, NAMESPACE)).get("status") or {}
            return any(one["type"] == "Ready" and one["reason"] == reason for one in status.get("conditions", ()))

        await eventually(says, f"{name} to be {reason}")

    async def wait_told(self, name: str, why: str) -> None:
        """Return when the run says why its queue holds it back."""

        async def says() -> bool:
            conditions = (await self.store.get(TRAINING_RUN, name, NAMESPACE))["status"]["conditions"]
            (ready,) = (one for one in conditions if one["type"] == "Ready")
            return (
                "waits for queue research to admit all of its workers: " in ready["message"] and why in ready["message"]
            )

        await eventually(says, f"{name} to say {why!r}")

    async def job(self, name: str) -> Manifest:
        """Return the run's only RayJob."""
        found = (await self.store.list(RAY_JOB, NAMESPACE, labels={"belvedere.dev/training-run": name})).items
        (job,) = found
        return job

    async def happened(self, name: str) -> set[str]:
        """Return the reasons of a run's Events."""
        events = (await self.store.list(EVENT, NAMESPACE)).items
        return {one["reason"] for one in events if one["involvedObject"]["name"] == name}

    async def play_kuberay(self) -> None:
        """Give each RayJob the status that its spec asks for."""
        while True:
            for job in (await self.store.list(RAY_JOB, NAMESPACE)).items:
                run = job["metadata"]["labels"]["belvedere.dev/training-run"]
                before, status = job.get("status") or {}, self._status(run, job)
                if any(before.get(name, "") != value for name, value in status.items()):
                    metadata = {"name": job["metadata"]["name"], "namespace": NAMESPACE}
                    told = {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": metadata, "status": status}
                    await self.store.apply_status(told, field_manager="kuberay")
            await asyncio.sleep(0.2)

    def _status(self, run: str, job: Manifest) -> dict[str, Any]:
        if job["spec"].get("suspend"):
            return {"jobStatus": "", "jobDeploymentStatus": "Suspended"}
        if run not in self.finished:
            return {"jobStatus": "RUNNING", "jobDeploymentStatus": "Running"}
        config = {"model": "clip", "metrics": {}, "lineage": {"configDigest": "sha256:" + "c" * 64}}
        tag = f"runs/{NAMESPACE}/{run}/1"
        self._artifacts.push("model", {"model.safetensors": run.encode()}, config=config, tag=tag)
        return {"jobStatus": "SUCCEEDED", "jobDeploymentStatus": "Complete"}


@asynccontextmanager
async def team(kubeconfig: Path, folder: Path) -> AsyncIterator[Team]:
    """Run the operator and KubeRay's part for the time of a with block."""
    artifacts = ArtifactStore(str(folder / "artifacts"))
    artifacts.push("dataset", {"manifest.json": b"{}"}, config={"name": "emoji"}, tag="datasets/emoji")
    store = KubernetesStore(kubeconfig=str(kubeconfig))
    settings = Settings(
        instance="test",
        artifacts_url=artifacts.url,
        store_url=f"kubernetes://?kubeconfig={kubeconfig}",
        namespaces=(NAMESPACE,),
        prometheus_url="http://127.0.0.1:9",
    )
    operator, made = ClusterOperator(store, SystemClock(), settings), Team(store, artifacts)
    tasks = [asyncio.create_task(operator.run()), asyncio.create_task(made.play_kuberay())]
    try:
        yield made
    finally:
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        await operator.close()
        await store.close()
        assert all(isinstance(one, asyncio.CancelledError) for one in ended), ended


async def test_a_run_waits_until_the_queue_admits_all_of_its_workers(
    built: Path, own_kubeconfig: Path, tmp_path: Path
) -> None:
    kueue = Kueue(built, own_kubeconfig, tmp_path)
    async with kueue.running(), team(own_kubeconfig, tmp_path) as runs:
        await kueue.create("/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
        quota = await make_queue(kueue, NAMESPACE, accelerators=ACCELERATORS)
        await runs.ask("first", ACCELERATORS)
        await runs.wait_for("first", "Training")

        # One accelerator fewer than it asks for would be free at the most: no worker of it may start.
        await runs.ask("second", ACCELERATORS)
        await runs.ask("too-large", ACCELERATORS + 1)
        for name in ("second", "too-large"):
            await runs.wait_for(name, "Queued")
            assert (await runs.job(name))["spec"]["suspend"] is True
        await runs.wait_told("second", "insufficient unused quota for nvidia.com/gpu")
        await runs.wait_told("too-large", "nvidia.com/gpu")
        assert sorted((await kueue.admitted(NAMESPACE)).items()) == [
            ("first-1", True),
            ("second-1", False),
            ("too-large-1", False),
        ]

        runs.finished.add("first")
        await runs.wait_for("first", "Published")
        await runs.wait_for("second", "Training")
        await kueue.merge(quota, {"spec": {"stopPolicy": "HoldAndDrain"}})
        await runs.wait_for("second", "Queued")
        assert "Preempted" in await runs.happened("second")
        await kueue.merge(quota, {"spec": {"stopPolicy": "None"}})
        await runs.wait_for("second", "Training")
        runs.finished.add("second")
        await runs.wait_for("second", "Published")
        assert (await runs.job("too-large"))["spec"]["suspend"] is True
