"""Starts the model servers of the comparison, each as a process of its own, and ends them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

from belvedere_platform.errors import Unavailable
from belvedere_serving.triton.options import RepositoryOptions
from belvedere_serving.triton.repository import write_repository
from belvedere_serving.triton.server import Launch, arguments, environment_of, find_installation

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PATIENCE_SECONDS = 240


def free_ports(number: int) -> list[int]:
    """Return ports that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextlib.contextmanager
def process(
    words: Sequence[str], environment: dict[str, str], log: Path, url: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server for the time of a with block, from when it is ready."""
    with log.open("wb") as out:
        running = subprocess.Popen(
            words, env=environment, stdin=subprocess.PIPE, stdout=out, stderr=subprocess.STDOUT, cwd=HERE
        )
    try:
        _wait(running, url, log)
        yield running
    finally:
        running.terminate()
        try:
            running.wait(30)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()


def _wait(running: subprocess.Popen[bytes], url: str, log: Path) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < end and running.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/v2/health/ready", timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.2)
    raise Unavailable(f"{url} did not become ready: {log.read_text(errors='replace')[-1500:]}")


@contextlib.contextmanager
def peer(script: str, engine: Path, folder: Path) -> Iterator[str]:
    """Serve with one of the peers; gives the URL."""
    cache = Path(os.environ.get("BELVEDERE_CACHE") or Path.home() / ".cache" / "belvedere")
    python = cache / "tools" / "serving-peers" / "bin" / "python"
    if not python.exists():
        raise Unavailable("the peers are not set up: deploy/benchmarks/peers.sh")
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    paths = os.pathsep.join(str(path) for path in (ROOT / "platform", ROOT / "serving", HERE))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    words = [str(python), str(HERE / script), str(engine), str(port)]
    with process(words, environment, folder / f"{script}.log", url):
        yield url


@contextlib.contextmanager
def triton(engine: Path, folder: Path, *, max_batch_size: int) -> Iterator[str]:
    """Serve with the real Triton; gives the URL."""
    installation = find_installation()
    options = RepositoryOptions(version="bench-v1", max_batch_size=max_batch_size, batch_wait_milliseconds=0)
    repository = write_repository(engine, folder / "repository", options)
    http, grpc, metrics = free_ports(3)
    url = f"http://127.0.0.1:{http}"
    words = arguments(installation, Launch(repository=repository, http_port=http, grpc_port=grpc, metrics_port=metrics))
    with process(words, environment_of(installation), folder / "triton.log", url):
        yield url


@contextlib.contextmanager
def ray_serve(arguments: dict[str, object], folder: Path) -> Iterator[tuple[str, str]]:
    """Serve with our application on a Ray of its own; gives the URL and the gRPC address of its one replica."""
    temp = tempfile.mkdtemp(prefix="bv-", dir="/tmp")
    http, grpc = free_ports(2)
    base = 21_000 + os.getpid() % 70 * 100
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_raylet_start_wait_time_s": "180",
        # Ray makes its workers nicer than their peers, which would decide the comparison on a busy machine.
        "RAY_worker_niceness": "0",
        # A proxy that has no core to start on within five seconds would be killed.
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "120",
        "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "120",
        "RAY_SERVE_ENABLE_DIRECT_INGRESS": "1",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(base),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(base + 49),
        "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": str(base + 50),
        "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": str(base + 99),
        "BELVEDERE_CACHE": f"{temp}/cache",
    }
    given = json.dumps({"temp": temp, "http": http, "grpc": grpc, "arguments": arguments})
    with (folder / "ray.log").open("wb") as log:
        running = subprocess.Popen(
            [sys.executable, str(HERE / "ray_host.py"), given],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
        )
    try:
        assert running.stdout is not None
        line = running.stdout.readline()
        if not line:
            raise Unavailable(f"Ray Serve did not start: {(folder / 'ray.log').read_text()[-1500:]}")
        ports = json.loads(line)
        yield f"http://127.0.0.1:{ports['http']}", f"127.0.0.1:{ports['grpc']}"
    finally:
        assert running.stdin is not None
        running.stdin.close()
        try:
            running.wait(60)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()
        shutil.rmtree(temp, ignore_errors=True)


REPLICA = b"ray::ServeReplica:bench:"
"""How Ray names the process of a replica of the application `bench`."""


def replica_memory_mib() -> float:
    """Return the memory of the replicas of our application, by the kernel's account."""
    found = 0
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (folder / "cmdline").read_bytes().startswith(REPLICA):
                fields = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
                found += int(fields["VmRSS"].split()[0])
    return found / 1024
