"""Starts the other model servers of the comparison, each as a process of its own, and ends them."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

from belvedere_platform.errors import Unavailable
from belvedere_platform.ports import free_ports
from belvedere_serving.triton.options import RepositoryOptions
from belvedere_serving.triton.repository import write_repository
from belvedere_serving.triton.server import Launch, arguments, environment_of, find_installation

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PATIENCE_SECONDS = 240


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
