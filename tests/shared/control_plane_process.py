"""A real API server as a process, for a test or for all of a run."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PROGRAM = (sys.executable, str(Path(__file__).resolve().parents[2] / "deploy" / "cluster" / "control_plane.py"))


def skip_unless_built() -> None:
    """Skip where there is no API server to start."""
    if subprocess.run([*PROGRAM, "ready"], stderr=subprocess.DEVNULL).returncode:
        pytest.skip("the API server is not built: make control-plane")


@contextmanager
def control_plane_or_skip(directory: Path) -> Iterator[Path]:
    """Run an API server with its etcd for the time of a with block, and give its kubeconfig; skips where it is not built."""
    skip_unless_built()
    # It ends when its standard input does, so it does not outlive this process whatever becomes of that.
    with subprocess.Popen(
        [*PROGRAM, "run", "--directory", str(directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        path = running.stdout.readline().strip()
        assert path, "the control plane did not start: its reason stands above"
        yield Path(path)
        running.stdin.close()
        assert running.wait(60) == 0
