"""The real KubeRay beside us: as many RayJobs, on the same API server, with pods that kwok plays alike.

KubeRay's operator finds each head by its name in the cluster. Here it runs outside of pods, in a mount namespace whose
resolver answers every such name with one address of loopback, where a dashboard takes jobs and says that they have succeeded
after as long as they take on our side.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, aclosing, contextmanager
from pathlib import Path
from typing import Any, cast

from aiohttp import web

from belvedere_operators.manifests.pods import PodSettings
from belvedere_operators.manifests.rayjob import ray_job
from belvedere_platform.resources.training_run import TrainingRun
from belvedere_platform.store import Manifest, ObjectStore
from belvedere_platform.store.kinds import RAY_JOB
from fleet import NUM_NODES, apply_all, running, training_run
from simulator import TRAINING_SECONDS

RESOLVER, DASHBOARD = "127.9.9.53", "127.9.9.8"
DASHBOARD_PORT = 8265
PATIENCE_SECONDS = 900.0
DIGEST = "sha256:" + "d" * 64


class PeerMissing(Exception):
    """Why the peer cannot be measured here."""


def program(cache: Path) -> Path:
    """Return KubeRay's operator in the cache. Raises PeerMissing."""
    found = sorted(cache.glob("tools/addons/kuberay-*/bin/manager"))
    if not found:
        raise PeerMissing("KubeRay's operator is not built: make cluster-up builds it")
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        raise PeerMissing("a mount namespace for KubeRay's resolver needs root and unshare")
    return found[-1]


class Resolver(asyncio.DatagramProtocol):
    """Answers every question for an IPv4 address with the dashboard's."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way back."""
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        """Answer one question."""
        self._transport.sendto(answer(data), address)


def answer(question: bytes) -> bytes:
    """Return the answer to a DNS question (RFC 1035): one A record, or none to a question of another type."""
    identity, _, count = struct.unpack("!HHH", question[:6])
    end = 12
    while question[end]:
        end += question[end] + 1
    asked = question[12 : end + 5]
    is_address = asked[-4:-2] == b"\x00\x01" and count == 1
    header = struct.pack("!HHHHHH", identity, 0x8580, 1, 1 if is_address else 0, 0, 0)
    # The name is a pointer to that of the question; type A, class IN, no second of caching, four bytes.
    record = struct.pack("!HHHIH", 0xC00C, 1, 1, 0, 4) + bytes(map(int, DASHBOARD.split(".")))
    return header + asked + (record if is_address else b"")


class Dashboard:
    """The part of Ray's job interface that KubeRay asks."""

    def __init__(self) -> None:
        self._began: dict[str, float] = {}

    def application(self) -> web.Application:
        """Return the application."""
        app = web.Application()
        app.router.add_post("/api/jobs/", self._submit)
        app.router.add_get("/api/jobs/{job}", self._tell)
        return app

    async def _submit(self, request: web.Request) -> web.Response:
        job = (await request.json())["submission_id"]
        self._began[job] = time.time()
        return web.json_response({"job_id": job, "submission_id": job})

    async def _tell(self, request: web.Request) -> web.Response:
        job = request.match_info["job"]
        began = self._began.get(job)
        if began is None:
            return web.Response(status=404, text=f"Job {job} does not exist")
        ended = time.time() - began >= TRAINING_SECONDS
        told: dict[str, Any] = {"submission_id": job, "job_id": job, "start_time": int(1000 * began)}
        told["status"] = "SUCCEEDED" if ended else "RUNNING"
        return web.json_response({**told, **({"end_time": int(1000 * time.time())} if ended else {})})


def ray_jobs(namespace: str, count: int) -> list[Manifest]:
    """Return RayJobs like those of our runs, each with its pods placed: nothing schedules here."""
    return [_ray_job(namespace, number) for number in range(count)]


def _ray_job(namespace: str, number: int) -> Manifest:
    run = training_run(f"peer-{number:05d}", namespace)
    metadata = {**run["metadata"], "uid": f"{number}"}
    built = ray_job(
        TrainingRun.model_validate({**run, "metadata": metadata}).spec,
        metadata=metadata,
        attempt=1,
        data_digest=DIGEST,
        parent_digest=None,
        pods=PodSettings(image="belvedere:bench"),
    )
    del built["metadata"]["ownerReferences"]
    cluster = built["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        group["template"]["spec"]["nodeName"] = f"fake-{number % NUM_NODES}"
    return built


@contextmanager
def kuberay(manager: Path, kubeconfig: Path, namespace: str, folder: Path) -> Iterator[None]:
    """Run KubeRay's operator as it comes, but for its resolver."""
    resolver = folder / "resolv.conf"
    resolver.write_text(f"nameserver {RESOLVER}\n")
    words = ["-metrics-addr=127.0.0.1:0", "-health-probe-bind-address=127.0.0.1:0", "-enable-leader-election=false"]
    script = 'mount --bind "$1" "$(readlink -f /etc/resolv.conf)" && shift && exec "$@"'
    command = [str(manager), f"-kubeconfig={kubeconfig}", f"-watch-namespace={namespace}", *words]
    with running(
        ["unshare", "--mount", "sh", "-c", script, "kuberay", str(resolver), *command], folder / "kuberay.log"
    ):
        yield


async def measure(
    store: ObjectStore, manager: Path, kubeconfig: Path, namespace: str, folder: Path, jobs: int
) -> float:
    """Return the seconds from the first RayJob to the last one's end. Raises RuntimeError when that takes too long."""
    loop = asyncio.get_running_loop()
    with ExitStack() as stack:
        transport, _ = await loop.create_datagram_endpoint(Resolver, local_addr=(RESOLVER, 53))
        stack.callback(transport.close)
        runner = web.AppRunner(Dashboard().application(), access_log=None)
        await runner.setup()
        try:
            await web.TCPSite(runner, DASHBOARD, DASHBOARD_PORT).start()
            stack.enter_context(kuberay(manager, kubeconfig, namespace, folder))
            return await _complete(store, namespace, jobs)
        finally:
            await runner.cleanup()


async def _complete(store: ObjectStore, namespace: str, jobs: int) -> float:
    since = (await store.list(RAY_JOB, namespace)).resource_version
    manifests = ray_jobs(namespace, jobs)
    missing = {one["metadata"]["name"] for one in manifests}
    began = time.monotonic()
    applying = asyncio.create_task(apply_all(store, manifests))
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            async with aclosing(store.watch(RAY_JOB, namespace, resource_version=since)) as events:  # type: ignore[type-var]
                async for event in events:
                    status = event.object.get("status") or {}
                    if status.get("jobDeploymentStatus") == "Complete":
                        missing.discard(event.object["metadata"]["name"])
                    if not missing:
                        break
    except TimeoutError as error:
        raise RuntimeError(f"KubeRay has not ended {len(missing)} of {jobs} RayJobs") from error
    finally:
        await applying
    return time.monotonic() - began
