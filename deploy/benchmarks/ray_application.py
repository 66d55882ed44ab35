"""Starts our application, or several, on a Ray of its own, with one replica each, as the component tests and the benchmark need it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from belvedere_operators.manifests.platform import RAY_ENVIRONMENT
from belvedere_platform.errors import Unavailable
from belvedere_platform.ports import free_ports
from scratch import scratch
from usage import Usage, usage

HOST = Path(__file__).parent / "ray_host.py"
ENDING_SECONDS = 60


class RayApplication:
    """A replica behind its own ports, on the loopback address."""

    def __init__(self, process: subprocess.Popen[str], name: str, ports: Mapping[str, int], metrics: int) -> None:
        self._process, self._name = process, name
        self.http, self.grpc, self.metrics = ports["http"], ports["grpc"], metrics

    def replica_states(self) -> dict[str, int]:
        """Return how many replicas there are in which state."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{self._name}\n")
        self._process.stdin.flush()
        states: dict[str, int] = json.loads(self._process.stdout.readline())
        return states

    def usage(self) -> Usage:
        """Return what the replica has used so far."""
        # Ray names a replica's process so.
        title = f"ray::ServeReplica:{self._name}:".encode()
        return usage(lambda words: words[0].startswith(title))


@dataclass(frozen=True, kw_only=True)
class Application:
    """One application of a Ray: its arguments, and the path that it is found at."""

    arguments: Mapping[str, Any]
    prefix: str = "/"


@contextlib.contextmanager
def ray_application(arguments: Mapping[str, Any], *, name: str) -> Iterator[RayApplication]:
    """Serve for the time of a with block. Raises Unavailable with what Ray said when it does not start."""
    with ray_applications({name: Application(arguments=arguments)}) as served:
        yield served[name]


@contextlib.contextmanager
def ray_applications(applications: Mapping[str, Application]) -> Iterator[dict[str, RayApplication]]:
    """Serve several, by name, on one Ray for the time of a with block. Raises Unavailable when it does not start."""
    # Sockets have their place there, and the kernel takes no long path for one.
    with scratch("bv-ray-", under="/tmp") as temp, tempfile.TemporaryFile("w+") as log:
        http, grpc, metrics, *own = free_ports(5)
        given = {"temp": str(temp), "http": http, "grpc": grpc, "metrics": metrics}
        asked = {name: dataclasses.asdict(one) for name, one in applications.items()}
        process = subprocess.Popen(
            [sys.executable, str(HOST), json.dumps({**given, "applications": asked})],
            env=_environment(temp, first_http=own[0], first_grpc=own[1]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        )
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                log.seek(0)
                raise Unavailable(f"Ray Serve did not start: {log.read()[-3000:]}")
            yield {name: RayApplication(process, name, ports, metrics) for name, ports in json.loads(line).items()}
        finally:
            _stop(process)


def _environment(temp: Path, *, first_http: int, first_grpc: int) -> dict[str, str]:
    """Return the environment of a Ray. A worker takes any port that is free: where a replica finds its first one gone it takes the next."""
    ranges = {"HTTP": first_http, "GRPC": first_grpc}
    return {
        **os.environ,
        **RAY_ENVIRONMENT,
        "RAY_raylet_start_wait_time_s": "180",
        # A proxy that has no core to start on within five seconds would be killed.
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "120",
        "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "120",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",
        **{f"RAY_SERVE_DIRECT_INGRESS_MIN_{which}_PORT": f"{port}" for which, port in ranges.items()},
        **{f"RAY_SERVE_DIRECT_INGRESS_MAX_{which}_PORT": f"{port + 49}" for which, port in ranges.items()},
        "BELVEDERE_CACHE": f"{temp}/cache",
    }


def _stop(process: subprocess.Popen[str]) -> None:
    """End the host, and what is left of its session if it does not end in time."""
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    try:
        process.wait(timeout=ENDING_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=10)
    process.stdout.close()
