"""Engines kept on a node: bounded, and never taken from a process that uses them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from belvedere_platform.artifacts import ArtifactKind, ArtifactStore
from belvedere_platform.errors import InvalidInput
from belvedere_serving.server import cache_limit, engine_cache

MIB = 2**20
USER = """
import sys, time
from pathlib import Path
from belvedere_serving.server.engine_cache import fetch

print(fetch(sys.argv[1], sys.argv[2], Path(sys.argv[3])), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore((tmp_path / "store").as_uri())


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(cache_limit.LIMIT_VARIABLE, str(2.5 / 1024))
    return tmp_path / "cache"


@pytest.fixture
def engines(store: ArtifactStore) -> list[str]:
    """Four engines of a MiB each: two fit in the cache and three do not."""
    contents = [bytes([number]) * MIB for number in range(4)]
    return [store.push(ArtifactKind.ENGINE, {"a.onnx": one}, config={}).digest for one in contents]


@pytest.fixture
def earlier(store: ArtifactStore, cache: Path) -> Callable[..., Path]:
    """Fetch as a process does that has ended since, and give the folder."""

    def fetched(digest: str, *, used_at: float) -> Path:
        folder = store.pull(digest, cache / digest.removeprefix("sha256:"))
        os.utime(folder, (used_at, used_at))
        return folder

    return fetched


def test_the_longest_unused_engine_makes_room(
    store: ArtifactStore,
    cache: Path,
    engines: list[str],
    earlier: Callable[..., Path],
    caplog: pytest.LogCaptureFixture,
) -> None:
    recent, old = earlier(engines[0], used_at=2000), earlier(engines[1], used_at=1000)

    new = engine_cache.fetch(store.url, engines[2], cache)

    assert recent.exists()
    assert new.exists()
    assert not old.exists()
    [record] = caplog.records
    assert old.name[:12] in record.getMessage()
    assert "1 MiB" in record.getMessage()


def test_a_use_counts_and_reads_nothing_from_the_store(
    store: ArtifactStore, cache: Path, engines: list[str], earlier: Callable[..., Path]
) -> None:
    used, unused = earlier(engines[0], used_at=1000), earlier(engines[1], used_at=2000)

    subprocess.run(
        [sys.executable, "-c", USER, "file:///nowhere", engines[0], cache], stdin=subprocess.DEVNULL, check=True
    )
    engine_cache.fetch(store.url, engines[2], cache)

    assert used.exists()
    assert not unused.exists()


def test_what_a_process_uses_stays_until_it_ends(
    store: ArtifactStore,
    cache: Path,
    engines: list[str],
    earlier: Callable[..., Path],
    caplog: pytest.LogCaptureFixture,
) -> None:
    command = [sys.executable, "-c", USER, store.url, engines[0], str(cache)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as user:
        assert user.stdout is not None
        held = Path(user.stdout.readline().strip())
        os.utime(held, (1000, 1000))
        idle = earlier(engines[1], used_at=2000)

        cache_limit.make_room(cache, incoming="f" * 64, size=2 * MIB, limit=cache_limit.limit_bytes())

        assert held.exists()
        assert not idle.exists()
        assert cache_limit.LIMIT_VARIABLE in caplog.text
        user.send_signal(signal.SIGKILL)

    cache_limit.make_room(cache, incoming="f" * 64, size=2 * MIB, limit=cache_limit.limit_bytes())
    assert not held.exists()


def test_a_removal_that_was_cut_off_leaves_no_engine_and_is_ended_by_the_next(
    cache: Path, engines: list[str], earlier: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = earlier(engines[0], used_at=1000)

    def cut_off(_: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cache_limit.shutil, "rmtree", cut_off)
        with pytest.raises(KeyboardInterrupt):
            cache_limit.make_room(cache, incoming="f" * 64, size=2 * MIB, limit=2 * MIB)
    assert not folder.exists()
    assert any(cache.rglob("a.onnx"))

    cache_limit.make_room(cache, incoming="f" * 64, size=0, limit=2 * MIB)
    assert not any(cache.rglob("a.onnx"))


def test_an_abandoned_pull_goes_and_one_that_runs_stays(cache: Path) -> None:
    abandoned, running = (cache / f".{letter * 64}.0123456789ab.partial" for letter in "ab")
    for folder in (abandoned, running):
        folder.mkdir(parents=True)
        (folder / "a.onnx").write_bytes(bytes(MIB))
        (cache / f"{folder.name[:65]}.pull.lock").touch()

    with cache_limit.file_lock(cache / f"{running.name[:65]}.pull.lock"):
        cache_limit.make_room(cache, incoming="f" * 64, size=MIB, limit=MIB)

    assert running.exists()
    assert not abandoned.exists()


def test_a_folder_removed_while_its_lock_was_awaited_is_not_taken_for_held(
    cache: Path, engines: list[str], earlier: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = earlier(engines[0], used_at=1000)

    def removed_first(*_: int) -> None:
        folder.rename(folder.with_name("elsewhere"))

    monkeypatch.setattr(cache_limit.fcntl, "flock", removed_first)
    assert cache_limit.hold(folder) is None


@pytest.mark.parametrize("given", ["much", "0", "-1", "nan", "inf"])
def test_a_wrong_limit_is_named(given: str) -> None:
    with pytest.raises(InvalidInput, match=f"{cache_limit.LIMIT_VARIABLE} is '{given}'"):
        cache_limit.limit_bytes({cache_limit.LIMIT_VARIABLE: given})
