"""A benchmark's folder: what one that was killed left behind goes when the next one begins, and what is in use stays."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from scratch import scratch

BENCHMARKS = Path(__file__).parents[2] / "deploy" / "benchmarks"
PROGRAM = """
import sys, time
from scratch import scratch

with scratch("belvedere-test-") as folder:
    (folder / "file").touch()
    print(folder, flush=True)
    time.sleep(600)
"""


def test_what_a_killed_one_left_goes_and_what_is_in_use_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    nobodys = tmp_path / "belvedere-test-nobodys"
    nobodys.mkdir()
    with subprocess.Popen([sys.executable, "-c", PROGRAM], cwd=BENCHMARKS, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        left = Path(other.stdout.readline().strip())
        with scratch("belvedere-test-") as own:
            assert {own, left, nobodys} == set(tmp_path.iterdir())
        assert {left, nobodys} == set(tmp_path.iterdir())
        other.kill()
    assert (left / "file").exists()
    with scratch("belvedere-other-"):
        assert left.exists()
    with scratch("belvedere-test-") as own:
        assert {own, nobodys} == set(tmp_path.iterdir())


def test_a_folder_at_a_place_of_its_own_is_swept_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for one in (here, there):
        (one / "belvedere-test-left").mkdir(parents=True)
        (one / "belvedere-test-left" / ".owner").touch()
    monkeypatch.setattr(tempfile, "tempdir", str(here))
    with scratch("belvedere-test-", under=str(there)) as own:
        assert list(there.iterdir()) == [own]
        assert (here / "belvedere-test-left").exists()
