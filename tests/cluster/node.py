"""The bare node under test: its programs, stopped and started."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
BARE_NODE = [sys.executable, str(ROOT / "deploy" / "cluster" / "bare_node.py")]


def run(command: str, directory: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """Run a command of bare_node.py."""
    return subprocess.run([*BARE_NODE, command, *more, "--directory", str(directory)], capture_output=True, text=True)


def stop_program(directory: Path, program: str) -> None:
    """Kill one of the node's programs and keep it from being started again."""
    assert run("stop", directory, program).returncode == 0


def start_program(directory: Path, program: str) -> None:
    """Let a stopped program run again."""
    assert run("start", directory, program).returncode == 0
