"""Shards: the same samples give the same bytes; damage is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from belvedere_platform.errors import CorruptData, InvalidInput
from belvedere_training.data.corpus import load_split
from belvedere_training.data.shapes import build_shapes
from belvedere_training.data.shards import Sample, read_shard, write_split


def test_the_same_data_set_has_the_same_bytes(tmp_path: Path, shapes_folder: Path) -> None:
    again = build_shapes(tmp_path / "again")
    assert {p.name: p.read_bytes() for p in again.iterdir()} == {
        p.name: p.read_bytes() for p in shapes_folder.iterdir()
    }


def test_what_was_written_is_read(tmp_path: Path) -> None:
    samples = [Sample(key=f"k{n}", png=bytes([n]) * n, record={"id": n, "zh": "红"}) for n in range(1, 4)]
    (path,) = write_split(samples, "train", tmp_path)
    assert list(read_shard(path)) == samples


def test_an_empty_shard_is_named(tmp_path: Path) -> None:
    (path,) = write_split([Sample(key="k", png=b"", record={})], "train", tmp_path)
    path.write_bytes(b"\0" * 10240)
    with pytest.raises(CorruptData, match=r"train-000000\.tar holds no sample"):
        list(read_shard(path))


def test_a_shard_cut_short_is_named(tmp_path: Path) -> None:
    samples = [Sample(key=f"k{n}", png=b"x" * 3000, record={"id": n}) for n in range(5)]
    (path,) = write_split(samples, "train", tmp_path)
    path.write_bytes(path.read_bytes()[:7000])
    with pytest.raises(CorruptData, match=r"train-000000\.tar is not a whole tar"):
        list(read_shard(path))


def test_a_truncated_picture_is_named(tmp_path: Path, shapes_folder: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(shapes_folder, folder)
    sample = next(read_shard(folder / "train-000000.tar"))
    broken = Sample(key=sample.key, png=sample.png[: len(sample.png) // 2], record=sample.record)
    write_split([broken], "train", folder)
    with pytest.raises(CorruptData, match=f"sample {sample.key} cannot be decoded"):
        load_split(folder, "train")


def test_an_unknown_split_is_answered_with_those_there_are(shapes_folder: Path) -> None:
    with pytest.raises(InvalidInput, match="it has hard_style, heldout_concepts, heldout_style, train"):
        load_split(shapes_folder, "validation")


def test_the_manifest_counts_its_samples(shapes_folder: Path) -> None:
    manifest = json.loads((shapes_folder / "manifest.json").read_text())
    for split, part in manifest["splits"].items():
        assert len(load_split(shapes_folder, split)) == part["samples"] > 0
