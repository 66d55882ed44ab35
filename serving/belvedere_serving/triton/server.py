"""The command line and the environment of a Triton server: the vendor's program, or the one that PyPI has."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import belvedere_platform
import belvedere_serving
from belvedere_platform.errors import Unavailable
from belvedere_serving.engines.node_cache import is_set_up, tool_folder
from belvedere_serving.triton.model_config import LANE

HINT = "make triton"
_POLL_SECONDS = 0.2
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, kw_only=True)
class Installation:
    """A Triton that can be started."""

    program: Path
    environment: Mapping[str, str]
    backends: Path | None = None
    caches: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Launch:
    """How to start it."""

    repository: Path
    http_port: int
    grpc_port: int
    metrics_port: int
    host: str = "127.0.0.1"
    lanes: int = 1
    cache_mib: int = 0
    exit_timeout_seconds: int = 30
    tracing: Mapping[str, str] = field(default_factory=dict)
    """Settings of Triton's OpenTelemetry mode by name; without any nothing is traced."""


def find_installation(environment: Mapping[str, str] = os.environ) -> Installation:
    """Return the Triton of this machine: BELVEDERE_TRITON's, the cached one from PyPI, or the one on PATH. Raises Unavailable."""
    folder = tool_folder("triton", environment)
    if is_set_up(folder):
        return _from_pypi(folder)
    program = shutil.which("tritonserver", path=environment.get("PATH"))
    if program is None:
        raise Unavailable(
            f"there is no Triton: neither {folder} nor a tritonserver on PATH; `{HINT}` sets one up from PyPI"
        )
    return Installation(program=Path(program), environment={"PYTHONPATH": _import_path()})


def _from_pypi(folder: Path) -> Installation:
    (site,) = folder.glob("venv/lib/python3.*/site-packages")
    server = site / "pytriton" / "tritonserver"
    return Installation(
        program=server / "bin" / "tritonserver",
        environment={
            "PATH": f"{folder / 'venv' / 'bin'}{os.pathsep}{os.defpath}",
            "PYTHONPATH": os.pathsep.join((str(site), _import_path())),
            "LD_LIBRARY_PATH": str(site / "nvidia_pytriton.libs"),
        },
        backends=folder / "backends",
        caches=server / "caches",
    )


def _import_path() -> str:
    """Return where Triton's Python finds our packages. In a source checkout they have two roots."""
    roots = dict.fromkeys(str(Path(package.__path__[0]).parent) for package in (belvedere_platform, belvedere_serving))
    return os.pathsep.join(root for root in roots if root in sys.path or Path(root).is_dir())


def arguments(installation: Installation, launch: Launch) -> list[str]:
    """Return the words of the command."""
    words = [
        str(installation.program),
        f"--model-repository={launch.repository}",
        "--model-control-mode=none",
        "--disable-auto-complete-config",
        "--strict-readiness=true",
        "--exit-on-error=true",
        f"--exit-timeout-secs={launch.exit_timeout_seconds}",
        f"--http-address={launch.host}",
        f"--http-port={launch.http_port}",
        "--http-thread-count=4",
        f"--grpc-address={launch.host}",
        f"--grpc-port={launch.grpc_port}",
        f"--metrics-address={launch.host}",
        f"--metrics-port={launch.metrics_port}",
        "--rate-limit=execution_count",
        f"--rate-limit-resource={LANE}:{launch.lanes}",
        "--log-verbose=0",
        *_trace_words(launch.tracing),
    ]
    if installation.backends is not None:
        words.append(f"--backend-directory={installation.backends}")
    if launch.cache_mib:
        if installation.caches is not None:
            words.append(f"--cache-directory={installation.caches}")
        words.append(f"--cache-config=local,size={launch.cache_mib << 20}")
    return words


def tracing_of(environment: Mapping[str, str] = os.environ, *, version: str) -> dict[str, str]:
    """Return where Triton sends its spans, by the variables of OpenTelemetry that our own server follows; empty for nowhere."""
    base = environment.get("OTEL_EXPORTER_OTLP_ENDPOINT", "").rstrip("/")
    url = environment.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or (f"{base}/v1/traces" if base else "")
    if not url:
        return {}
    delay = environment.get("OTEL_BSP_SCHEDULE_DELAY")
    resource = f"service.name=belvedere-server,belvedere.version={version}"
    return {"url": url, "resource": resource, **({"bsp_schedule_delay": delay} if delay else {})}


def _trace_words(tracing: Mapping[str, str]) -> list[str]:
    """Return the words that have each request traced, in the trace that its client names (W3C Trace Context)."""
    if not tracing:
        return []
    # A setting that may be given several times, as attributes are, takes one at a time.
    settings = [(name, one) for name, value in tracing.items() for one in value.split(",")]
    return [
        *("--trace-config=mode=opentelemetry", "--trace-config=rate=1", "--trace-config=level=TIMESTAMPS"),
        *(f"--trace-config=opentelemetry,{name}={value}" for name, value in settings),
    ]


def environment_of(installation: Installation, base: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the environment of the process."""
    # Threads are the engine's to set; a pool of a numerical library beside it would take the cores of its neighbour.
    return {**base, "OMP_NUM_THREADS": "1", **installation.environment}


def run_until_stopped(installation: Installation, launch: Launch, *, drain_seconds: float) -> int:
    """Run Triton until it ends by itself or this process is told to stop, and return its exit code.

    After the first SIGTERM or SIGINT it goes on answering for `drain_seconds`: whoever routes requests here must first
    have heard that this replica leaves. A second one ends the wait.
    """
    told = threading.Event()
    hurried = threading.Event()

    def stop(number: int, frame: object) -> None:
        (hurried if told.is_set() else told).set()

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    # In a session of its own: an interrupt at the terminal is for this process to pass on, after the wait.
    process = subprocess.Popen(
        arguments(installation, launch), env=environment_of(installation), start_new_session=True, preexec_fn=_die_with
    )
    try:
        while process.poll() is None and not told.wait(_POLL_SECONDS):
            pass
        if process.poll() is None:
            hurried.wait(drain_seconds)
            process.terminate()
            # One that does not end by itself in time is killed below.
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(launch.exit_timeout_seconds + 10)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        for number, handler in before.items():
            signal.signal(number, handler)
    return process.returncode


def _die_with() -> None:
    """Let the kernel end Triton when this process is killed: nobody else would."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
