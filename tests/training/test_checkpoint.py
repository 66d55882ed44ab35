"""Checkpoints in parts: whole or absent, the same state whoever reads them, and the old one intact on a full disk."""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from belvedere_platform.artifacts import ArtifactStore, StorageFull
from belvedere_platform.errors import CorruptData
from belvedere_training.checkpoint import Background, CheckpointFolder, part_name, part_of, read_state, write_part
from belvedere_training.config import RunConfig, resolve
from belvedere_training.loop import Interrupted
from belvedere_training.model.config import ModelConfig
from belvedere_training.recipe import prepare
from belvedere_training.step import Diverged
from belvedere_training.world import LocalWorld

LEAF = st.one_of(
    st.none(),
    st.integers(-5, 5),
    st.text(max_size=3),
    st.builds(torch.full, st.tuples(st.integers(0, 40)), st.floats(-1, 1)),
)
STATE = st.dictionaries(
    st.one_of(st.text(max_size=3), st.integers(0, 9)),
    st.recursive(LEAF, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner)),
    max_size=5,
)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@settings(deadline=None, max_examples=40)
@given(STATE, st.integers(1, 4))
def test_parts_of_any_number_of_workers_are_the_state(
    tmp_path_factory: pytest.TempPathFactory, state: dict[Any, Any], size: int
) -> None:
    folder = tmp_path_factory.mktemp("checkpoint")
    for rank in range(size):
        write_part(part_of(state, rank, size), folder / part_name(rank, size))
    assert same(read_state(folder), state)


def test_workers_write_about_as_much() -> None:
    state = {f"w{number}": torch.zeros(size) for number, size in enumerate((100, 90, 60, 50, 40, 30, 20, 10))}
    totals = [sum(len(tensor) for tensor in part_of(state, rank, 2)["tensors"].values()) for rank in range(2)]
    assert sum(totals) == 400
    assert abs(totals[0] - totals[1]) <= 20


def test_a_copy_is_kept_and_not_what_training_does_to_it_meanwhile(tmp_path: Path) -> None:
    weight = torch.ones(3)
    part = part_of({"weight": weight}, 0, 1)
    weight.zero_()
    CheckpointFolder(tmp_path).write(part, 5)
    state = CheckpointFolder(tmp_path).read()
    assert state is not None
    assert torch.equal(state["weight"], torch.ones(3))


def test_a_missing_part_is_told(tmp_path: Path) -> None:
    write_part(part_of({"a": torch.ones(2)}, 0, 2), tmp_path / part_name(0, 2))
    with pytest.raises(CorruptData, match=r"has parts \[0\] of \[2\]: it is not whole"):
        read_state(tmp_path)


def test_the_newest_whole_checkpoint_is_read_and_old_ones_go(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    for position in (10, 20, 30):
        folder.write(part_of({"at": position}, 0, 1), position)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pairs-000000000020", "pairs-000000000030"]
    newest = tmp_path / "pairs-000000000030" / part_name(0, 1)
    newest.write_bytes(newest.read_bytes()[:50])  # as a machine that lost power leaves it
    assert folder.read() == {"at": 20}


@pytest.mark.parametrize("left", [b"", bytes(4096)], ids=["nothing", "zeros"])
def test_a_checkpoint_that_a_crash_emptied_is_passed_over_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, left: bytes
) -> None:
    folder = CheckpointFolder(tmp_path)
    for position in (10, 20):
        folder.write(part_of({"at": position}, 0, 1), position)
    (tmp_path / "pairs-000000000020" / part_name(0, 1)).write_bytes(left)
    assert folder.read() == {"at": 10}
    assert "pairs-000000000020" in caplog.text


def test_what_a_killed_write_left_goes_with_the_next(tmp_path: Path) -> None:
    (tmp_path / ".partial-4711-10").mkdir()
    (tmp_path / ".partial-4711-10" / part_name(0, 1)).write_bytes(b"half")
    CheckpointFolder(tmp_path).write(part_of({"at": 10}, 0, 1), 10)
    assert [path.name for path in tmp_path.iterdir()] == ["pairs-000000000010"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a folder on a disk of 256 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_told_and_the_old_checkpoint_stays(small_disk: Path) -> None:
    folder = CheckpointFolder(small_disk)
    folder.write(part_of({"weight": torch.ones(20_000)}, 0, 1), 10)
    with pytest.raises(StorageFull, match="no space left"):
        folder.write(part_of({"weight": torch.ones(60_000)}, 0, 1), 20)
    assert [path.name for path in small_disk.iterdir()] == ["pairs-000000000010"]
    state = folder.read()
    assert state is not None
    assert len(state["weight"]) == 20_000


def test_what_went_wrong_in_the_background_is_raised_by_who_waits() -> None:
    background = Background()
    background.start(lambda: (_ for _ in ()).throw(StorageFull("here", "trying")))
    with pytest.raises(StorageFull):
        background.wait()
    background.wait()


Configure = Callable[..., RunConfig]


def test_a_notice_saves_the_state_just_in_time(
    store: ArtifactStore, tiny: ModelConfig, run_config: Configure, tmp_path: Path
) -> None:
    config = resolve(run_config(), store)
    notice = threading.Event()
    loop = prepare(config, store, LocalWorld(tmp_path / "state", cores=1, notice=notice))
    loop.run(until=16)
    notice.set()
    with pytest.raises(Interrupted, match="asked to end after 32 of 64 pairs"):
        loop.run()
    assert prepare(config, store, LocalWorld(tmp_path / "state", cores=1)).progress.pairs == 32


def test_a_run_broken_off_between_checkpoints_by_a_notice_equals_the_unbroken_one(
    store: ArtifactStore, tiny: ModelConfig, run_config: Configure, tmp_path: Path
) -> None:
    config = resolve(run_config(), store)
    unbroken = prepare(config, store, LocalWorld(cores=1))
    unbroken.run()
    notice = threading.Event()
    notice.set()
    first = prepare(config, store, LocalWorld(tmp_path / "state", cores=1, notice=notice))
    with pytest.raises(Interrupted):
        first.run()
    second = prepare(config, store, LocalWorld(tmp_path / "state", cores=1))
    assert second.progress.pairs == 16
    second.run()
    for name, tensor in unbroken.stepper.model.state_dict().items():
        assert torch.equal(tensor, second.stepper.model.state_dict()[name]), name


def test_a_batch_that_makes_the_loss_no_number_is_saved(
    store: ArtifactStore, tiny: ModelConfig, run_config: Configure, tmp_path: Path
) -> None:
    loop = prepare(resolve(run_config(), store), store, LocalWorld(tmp_path / "state", cores=1))
    loop.run(until=16)
    with torch.no_grad():
        loop.stepper.model.text_projection.weight.fill_(float("nan"))
    with pytest.raises(Diverged, match=r"after 16 pairs.*the batch is in .*diverged-16-rank0\.pt"):
        loop.run()
    saved = torch.load(tmp_path / "state" / "diverged-16-rank0.pt", weights_only=True)
    assert torch.equal(saved["pixels"], loop.stepper.loader.make(16).pixels_B3SS)
    assert saved["position"] == 16
    assert len(saved["texts"]) == 16
