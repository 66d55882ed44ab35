"""The control plane for tests: started once, found again, ended without a trace however it was interrupted."""

from __future__ import annotations

import hashlib
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from belvedere_operators.executors.identity import Identity, find_instance
from control_plane_process import PROGRAM, skip_unless_built

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

PATIENCE_SECONDS = 60


def members(directory: Path) -> set[Identity]:
    """Return the processes that carry the mark of the directory."""
    return find_instance("control-plane-" + hashlib.sha256(str(directory.resolve()).encode()).hexdigest()[:16])


def wait_for_members(directory: Path, count: int) -> None:
    """Return when so many processes run."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while len(members(directory)) < count:
        assert time.monotonic() < deadline, f"only {len(members(directory))} processes were started"
        time.sleep(0.05)


def run(command: str, directory: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PROGRAM, command, "--directory", str(directory)], capture_output=True, text=True)


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """A directory of this test's own, in which nothing runs afterwards."""
    skip_unless_built()
    place = tmp_path / "control-plane"
    yield place
    assert run("down", place).returncode == 0


def test_it_is_started_once_and_ended_wholly(directory: Path) -> None:
    first = run("up", directory)
    assert first.returncode == 0, first.stderr
    started = members(directory)
    assert len(started) == 3
    kubeconfig = Path(first.stdout.strip())
    assert kubeconfig.stat().st_mode & 0o077 == 0
    assert run("up", directory).stdout == first.stdout
    assert members(directory) == started
    assert run("down", directory).returncode == 0
    assert members(directory) == set()
    assert not directory.exists()


def test_one_that_was_killed_while_it_started_is_ended_too(directory: Path) -> None:
    starting = subprocess.Popen([*PROGRAM, "up", "--directory", str(directory)], stdout=subprocess.DEVNULL)
    wait_for_members(directory, 2)
    starting.kill()
    starting.wait()
    assert members(directory)
    assert run("down", directory).returncode == 0
    assert members(directory) == set()
    assert not directory.exists()


def test_it_ends_with_the_process_that_wanted_it(directory: Path) -> None:
    with subprocess.Popen(
        [*PROGRAM, "run", "--directory", str(directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        wait_for_members(directory, 1)
        running.stdin.close()
        assert running.wait(PATIENCE_SECONDS) == 0
    assert members(directory) == set()
    assert not directory.exists()


def test_a_signal_ends_it(directory: Path) -> None:
    with subprocess.Popen(
        [*PROGRAM, "run", "--directory", str(directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as running:
        wait_for_members(directory, 1)
        running.send_signal(signal.SIGTERM)
        assert running.wait(PATIENCE_SECONDS) == 0
    assert members(directory) == set()


def test_a_folder_with_other_files_is_left_alone(directory: Path) -> None:
    directory.mkdir()
    (directory / "thesis.txt").write_text("years of work")
    refused = run("up", directory)
    assert refused.returncode == 2
    assert "choose another --directory" in refused.stderr
    assert run("down", directory).returncode == 0
    assert (directory / "thesis.txt").read_text() == "years of work"
    shutil.rmtree(directory)
