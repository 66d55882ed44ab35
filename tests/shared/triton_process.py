"""Starts the real Triton for a test, on free ports, and ends it; skips where it is not set up."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import pytest

from belvedere_platform.errors import Unavailable
from belvedere_platform.ports import free_ports
from belvedere_serving.triton.server import Installation, Launch, arguments, environment_of, find_installation


@dataclass(frozen=True, kw_only=True)
class TritonProcess:
    """A Triton that answers."""

    process: subprocess.Popen[bytes]
    http_port: int
    grpc_port: int
    metrics_port: int
    log: Path


def find_or_skip() -> Installation:
    """Return the Triton of this machine, or skip the test."""
    try:
        return find_installation()
    except Unavailable as error:
        pytest.skip(str(error))


def triton_folder() -> str:
    """Return where `make triton` puts it."""
    cache = os.environ.get("BELVEDERE_CACHE") or Path.home() / ".cache" / "belvedere"
    return os.environ.get("BELVEDERE_TRITON") or str(Path(cache) / "tools" / "triton")


@contextlib.contextmanager
def start_triton(
    repository: Path, folder: Path, *, cache_mib: int = 0, tracing: Mapping[str, str] = MappingProxyType({})
) -> Iterator[TritonProcess]:
    """Serve a repository for the time of a with block."""
    installation = find_or_skip()
    http, grpc, metrics = free_ports(3)
    launch = Launch(
        repository=repository,
        http_port=http,
        grpc_port=grpc,
        metrics_port=metrics,
        cache_mib=cache_mib,
        tracing=tracing,
    )
    log = folder / "triton.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            arguments(installation, launch), env=environment_of(installation), stdout=out, stderr=subprocess.STDOUT
        )
    try:
        running = TritonProcess(process=process, http_port=http, grpc_port=grpc, metrics_port=metrics, log=log)
        wait_ready(running)
        yield running
    finally:
        process.terminate()
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_ready(running: TritonProcess, *, limit_seconds: float = 120) -> None:
    """Wait until it takes requests; fail the test when it ends before that."""
    end = time.monotonic() + limit_seconds
    while time.monotonic() < end and running.process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{running.http_port}/v2/health/ready", timeout=5):
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
    pytest.fail(f"Triton did not become ready: {running.log.read_text()[-4000:]}")
