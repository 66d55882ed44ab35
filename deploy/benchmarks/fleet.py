"""What the operator's benchmark needs around it: fake nodes, artifacts that exist, many objects, and processes that end with it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from belvedere_operators.controllers.context import installed_toolchain
from belvedere_operators.manifests.enginejob import engine_tag
from belvedere_platform.artifacts import ArtifactStore
from belvedere_platform.artifacts.layout import canonical, digest_of
from belvedere_platform.errors import Conflict
from belvedere_platform.resources.engine import EngineSpec
from belvedere_platform.store import Manifest, ObjectStore
from belvedere_platform.store.kubernetes_transport import Transport

NUM_NODES = 20
NUM_VERSIONS = 10
API = "belvedere.dev/v1alpha1"
LOOK_EVERY_SECONDS = 0.2
LAST_LINES = 20


def toolchain_digest() -> str:
    """Return what an operator with this installation takes for its toolchain."""
    return digest_of(canonical(installed_toolchain())).removeprefix("sha256:")[:8]


def model_service(name: str, namespace: str, version: str) -> Manifest:
    """Return a service with one replica."""
    spec = {"model": "clip", "version": version, "scaling": {"minReplicas": 1, "maxReplicas": 2}}
    return _object("ModelService", name, namespace, spec)


def training_run(name: str, namespace: str) -> Manifest:
    """Return a run with one worker and one accelerator."""
    spec = {
        "model": "clip",
        "data": {"dataset": "emoji"},
        "optimization": {"pairs": 1000},
        "workers": {"resources": {"gpu": 1}},
        "evaluation": {"gates": [{"metric": "heldout_style_en_r1", "minimum": 0.1}]},
    }
    return _object("TrainingRun", name, namespace, spec)


def _object(kind: str, name: str, namespace: str, spec: Manifest) -> Manifest:
    return {"apiVersion": API, "kind": kind, "metadata": {"name": name, "namespace": namespace}, "spec": spec}


def fill_artifacts(artifacts: ArtifactStore, namespace: str, runs: Sequence[str]) -> list[Manifest]:
    """Store a data set, a model for each version with its engine, and what the runs will leave. Return the ModelVersions."""
    artifacts.push("dataset", {"manifest.json": b"{}"}, config={"name": "emoji"}, tag="datasets/emoji")
    versions = []
    for number in range(NUM_VERSIONS):
        name = f"version-{number}"
        model = artifacts.push("model", {"model.json": name.encode()}, config={"metrics": {}}, tag=f"models/{name}")
        spec = EngineSpec(model_version=name)
        tag = engine_tag(spec, model_digest=model.digest, toolchain_digest=toolchain_digest())
        artifacts.push("engine", {"preprocess.json": name.encode()}, config=_built(model.digest), tag=tag)
        versions.append(
            _object(
                "ModelVersion",
                name,
                namespace,
                {"model": "clip", "digest": model.digest, "evaluation": {"passed": True}},
            )
        )
    metrics = {"heldout_style_en_r1": 0.4}
    trained = artifacts.push("model", {"model.json": b"{}"}, config={"metrics": metrics, "lineage": {}}, tag="trained")
    for run in runs:
        artifacts.tag(trained.digest, f"runs/{namespace}/{run}/1")
    return versions


def _built(model_digest: str) -> Manifest:
    parity = {"cosineMin": 0.99, "cosineMean": 0.99, "top1Agreement": 1.0, "samples": 8}
    return {
        "modelDigest": model_digest,
        "parity": {"embed_text": parity},
        "latency": {},
        "toolchain": {},
        "device": "cpu",
    }


async def make_nodes(transport: Transport) -> None:
    """Make nodes with accelerators that kwok looks after."""
    for number in range(NUM_NODES):
        amounts = {"cpu": "256", "memory": "1Ti", "pods": "1000", "nvidia.com/gpu": "64"}
        node = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": f"fake-{number}", "annotations": {"kwok.x-k8s.io/node": "fake"}},
            "status": {"allocatable": amounts, "capacity": amounts},
        }
        with suppress(Conflict):
            await transport.request("POST", "/api/v1/nodes", body=node)


async def make_namespace(transport: Transport, name: str) -> None:
    """Make a namespace, with the service account that its pods name."""
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    with suppress(Conflict):
        await transport.request("POST", "/api/v1/namespaces", body=body)
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}
    with suppress(Conflict):
        await transport.request("POST", f"/api/v1/namespaces/{name}/serviceaccounts", body=account)


async def apply_all(store: ObjectStore, manifests: Sequence[Manifest], *, at_once: int = 16) -> None:
    """Apply many objects, some at a time."""
    waiting = iter(manifests)

    async def work() -> None:
        for manifest in waiting:
            await store.apply(manifest, field_manager="bench")

    await asyncio.gather(*(work() for _ in range(at_once)))


@contextmanager
def running(
    words: Sequence[str], log: Path, environment: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program for the time of a with block; it does not outlive this process."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            words,
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **(environment or {})},
            preexec_fn=_end_with_parent,
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@dataclass(frozen=True, kw_only=True)
class Needed:
    """A program without which there is nothing to wait for."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path


async def while_they_run(work: Coroutine[Any, Any, None], *needed: Needed) -> None:
    """Do the work to its end. Raises RuntimeError with a program's last words as soon as one of these ends."""
    working = asyncio.create_task(work)
    watching = asyncio.create_task(_one_ends(needed))
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        ended = _ended(needed)
        if ended is None or (working.done() and working.exception() is None):
            return working.result()
        said = ended.log.read_text(errors="replace").splitlines()[-LAST_LINES:]
        raise RuntimeError("\n".join([f"{ended.name} ended with {ended.process.returncode}:", *said]))
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _one_ends(needed: Sequence[Needed]) -> None:
    while _ended(needed) is None:  # noqa: ASYNC110 - a process tells nobody when it ends
        await asyncio.sleep(LOOK_EVERY_SECONDS)


def _ended(needed: Sequence[Needed]) -> Needed | None:
    return next((each for each in needed if each.process.poll() is not None), None)


@contextmanager
def control_plane(directory: Path) -> Iterator[Path]:
    """Run an API server with its etcd, from nothing, for the time of a with block, and give its kubeconfig."""
    program = Path(__file__).parent.parent / "cluster" / "control_plane.py"
    # It ends when its standard input does, so it does not outlive this process whatever becomes of that.
    with subprocess.Popen(
        [sys.executable, str(program), "run", "--directory", str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        path = process.stdout.readline().strip()
        if not path:
            raise RuntimeError("the control plane did not start: its reason stands above")
        yield Path(path)
        process.stdin.close()
        process.wait(60)


def _end_with_parent() -> None:
    import ctypes

    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def python(script: str, *words: str) -> list[str]:
    """Return the words that run a script of this folder."""
    return [sys.executable, str(Path(__file__).with_name(script)), *words]
