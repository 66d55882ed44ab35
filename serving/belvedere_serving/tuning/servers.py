"""Starts the servers that are tried, as processes of their own, on free ports."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence

from belvedere_platform.errors import Unavailable
from belvedere_platform.ports import free_ports
from belvedere_serving.tuning.search import Settings

PATIENCE_SECONDS = 180.0


@contextlib.contextmanager
def own_servers(settings: Settings, *, artifacts: str) -> Iterator[tuple[str, ...]]:
    """Serve with our server; instances are replicas, each a process of its own. Gives the URL of each."""
    with contextlib.ExitStack() as stack:
        yield tuple(stack.enter_context(own_server(settings, artifacts=artifacts)) for _ in range(settings.instances))


@contextlib.contextmanager
def own_server(settings: Settings, *, artifacts: str) -> Iterator[str]:
    """Serve with one replica of our server."""
    (http, grpc) = free_ports(2)
    words = [
        *("engine", "serve", settings.engine, "--artifacts", artifacts),
        *("--http-port", f"{http}", "--grpc-port", f"{grpc}"),
        *("--max-batch-size", f"{settings.max_batch_size}"),
        *("--batch-wait-milliseconds", f"{settings.batch_wait_milliseconds:g}"),
        *("--threads", f"{settings.threads}"),
    ]
    with _process(words, f"http://127.0.0.1:{http}") as url:
        yield url


@contextlib.contextmanager
def triton_server(settings: Settings, *, artifacts: str) -> Iterator[tuple[str, ...]]:
    """Serve with Triton, which has all instances in one."""
    (http, grpc, metrics) = free_ports(3)
    words = [
        *("triton", "serve", settings.engine, "--artifacts", artifacts, "--model-version", "tuned-v1"),
        *("--http-port", f"{http}", "--grpc-port", f"{grpc}", "--metrics-port", f"{metrics}"),
        *("--max-batch-size", f"{settings.max_batch_size}"),
        *("--batch-wait-milliseconds", f"{settings.batch_wait_milliseconds:g}"),
        *("--instances", f"{settings.instances}", "--threads", f"{settings.threads}"),
    ]
    with _process(words, f"http://127.0.0.1:{http}") as url:
        yield (url,)


@contextlib.contextmanager
def _process(words: Sequence[str], url: str) -> Iterator[str]:
    command = [sys.executable, "-m", "belvedere_platform.cli.main", *words]
    running = subprocess.Popen(command, env=dict(os.environ), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        _wait(running, url, json.dumps(words))
        yield url
    finally:
        running.terminate()
        try:
            running.communicate(timeout=40)
        except subprocess.TimeoutExpired:
            running.kill()
            running.communicate()


def _wait(running: subprocess.Popen[bytes], url: str, what: str) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < end:
        if running.poll() is not None:
            _, errors = running.communicate()
            raise Unavailable(
                f"{what} ended with exit code {running.returncode}: {errors[-800:].decode(errors='replace')}"
            )
        try:
            with urllib.request.urlopen(f"{url}/v2/health/ready", timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.1)
    raise Unavailable(f"{what} was not ready after {PATIENCE_SECONDS:.0f} s")
