"""The artifact store under several processes, a killed one, and a full disk."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from belvedere_platform.artifacts import ArtifactStore, StorageFull

PUSH_MANY = """
import sys
from belvedere_platform.artifacts import ArtifactStore
store, who = ArtifactStore(sys.argv[1]), sys.argv[2]
for number in range(20):
    store.push("model", {"own": f"{who} {number}".encode(), "shared": b"same" * 100}, config={"who": who}, tag=f"runs/{who}/{number}")
    store.tag(f"runs/{who}/{number}", "latest")
"""
# Writes half of a blob, says so, and waits to be killed in the middle of its push.
PUSH_AND_STOP = """
import sys
from belvedere_platform.artifacts import ArtifactStore, storage
def stall(source, sink):
    if sink is None:
        return real(source, sink)
    sink.write(source.read(5)); sink.flush()
    print("writing", flush=True)
    sys.stdin.read()
real, storage.copy_hashing = storage.copy_hashing, stall
ArtifactStore(sys.argv[1]).push("model", {"model.safetensors": b"never whole"}, config={}, tag="models/v2")
"""
PULL = """
import sys
from pathlib import Path
from belvedere_platform.artifacts import ArtifactStore
ArtifactStore(sys.argv[1]).pull("models/v1", Path(sys.argv[2]))
"""


def start(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )


def test_two_processes_push_at_once_and_nothing_is_lost(tmp_path: Path) -> None:
    running = [start(PUSH_MANY, str(tmp_path), who) for who in ("one", "two")]
    assert [process.wait(300) for process in running] == [0, 0]
    for process in running:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        process.stdout.close()
    store = ArtifactStore(str(tmp_path))
    tags = {tag for one in store.list() for tag in one.tags}
    assert tags == {f"runs/{who}/{number}" for who in ("one", "two") for number in range(20)} | {"latest"}
    for one in store.list():
        store.verify(one.digest)
    assert list((tmp_path / "ingest").iterdir()) == []


def test_a_killed_push_leaves_nothing_that_counts(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path))
    kept = store.push("model", {"model.safetensors": b"whole"}, config={}, tag="models/v1")
    process = start(PUSH_AND_STOP, str(tmp_path))
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        process.send_signal(signal.SIGKILL)
        process.wait(60)
    assert [one.digest for one in store.list()] == [kept.digest]
    assert {path.name for path in (tmp_path / "blobs/sha256").iterdir()} == {digest[7:] for digest in kept.blobs}
    assert len(list((tmp_path / "ingest").iterdir())) == 1
    store.collect_garbage(["models/v1"])
    assert list((tmp_path / "ingest").iterdir()) == []
    assert store.push("model", {"model.safetensors": b"never whole"}, config={}, tag="models/v2")
    assert store.verify("models/v2")


def test_garbage_collection_waits_for_a_push(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path))
    process = start(PUSH_AND_STOP, str(tmp_path))
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        collector = subprocess.Popen(
            [
                sys.executable,
                "-c",
                f"from belvedere_platform.artifacts import ArtifactStore as A; A({str(tmp_path)!r}).collect_garbage([])",
            ]
        )
        with pytest.raises(subprocess.TimeoutExpired):
            collector.wait(1.5)
        process.kill()
        assert collector.wait(120) == 0
    assert store.list() == []


def test_processes_that_pull_to_one_place_agree(tmp_path: Path) -> None:
    files = {f"{number}.bin": os.urandom(200_000) for number in range(8)}
    ArtifactStore(str(tmp_path / "store")).push("model", files, config={}, tag="models/v1")
    running = [start(PULL, str(tmp_path / "store"), str(tmp_path / "out")) for _ in range(3)]
    for process in running:
        with process:
            assert process.wait(300) == 0
    pulled = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if not path.name.startswith(".")}
    assert pulled == files


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for 256 KiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)], check=False, capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_is_said_and_nothing_half_written_stays(small_disk: Path) -> None:
    store = ArtifactStore(str(small_disk))
    kept = store.push("model", {"a": b"small"}, config={}, tag="models/v1")
    before = sorted(str(path) for path in small_disk.rglob("*"))
    with pytest.raises(StorageFull, match=r"no space left in .* while writing .*nothing half-written was kept"):
        store.push("model", {"a": os.urandom(1 << 20)}, config={}, tag="models/v2")
    assert sorted(str(path) for path in small_disk.rglob("*")) == before
    assert [one.digest for one in store.list()] == [kept.digest]
    assert store.push("model", {"a": b"also small"}, config={}, tag="models/v2")


def test_a_pull_to_a_full_disk_leaves_no_directory(small_disk: Path, tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path / "store"))
    store.push("model", {"a": b"small", "b": os.urandom(1 << 20)}, config={}, tag="models/v1")
    with pytest.raises(StorageFull):
        store.pull("models/v1", small_disk / "out")
    assert not (small_disk / "out").exists()
