"""Reading a split sample by sample: bounded memory, and what happens to samples that cannot be used."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from belvedere_platform.errors import CorruptData
from belvedere_training.data.corpus import Corpus, check_corrupt, held_out_splits, load_split
from belvedere_training.data.manifest import write_dataset
from belvedere_training.data.shards import Sample, read_shard


def samples_of(folder: Path, count: int) -> list[Sample]:
    """Return so many samples, each with a key of its own."""
    found = list(read_shard(folder / "train-000000.tar"))
    return [
        Sample(key=f"s{number}", png=found[number % len(found)].png, record=found[number % len(found)].record)
        for number in range(count)
    ]


def written(samples: list[Sample], folder: Path) -> Path:
    facts = {"name": "trial", "size": 64, "styles": {}, "licences": ["Apache-2.0"]}
    return write_dataset({"train": samples}, facts, folder)


def truncated(sample: Sample) -> Sample:
    return Sample(key=sample.key, png=sample.png[: len(sample.png) // 2], record=sample.record)


def test_positions_read_one_by_one_are_the_shard_in_its_order(shapes_folder: Path) -> None:
    corpus = load_split(shapes_folder, "train")
    expected = list(read_shard(shapes_folder / "train-000000.tar"))
    assert [corpus.png(position) for position in range(len(corpus))] == [sample.png for sample in expected]
    assert list(corpus.records) == [sample.record for sample in expected]
    assert corpus.languages == ("en", "zh")
    assert torch.equal(corpus.pixels([5, 3])[1], corpus.pixels([3])[0])


def test_no_more_pictures_than_allowed_stay_in_memory(shapes_folder: Path) -> None:
    corpus = load_split(shapes_folder, "train", kept_bytes=10 * 64 * 64 * 3)
    everything = torch.cat(list(corpus.chunks(16)))
    assert len(corpus) > 10
    assert len(corpus._kept) == 10
    assert torch.equal(everything, torch.cat(list(load_split(shapes_folder, "train").chunks(7))))


def test_a_shard_is_looked_through_once(shapes_folder: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_split(shapes_folder, "train")
    monkeypatch.setattr("belvedere_training.data.index.look_through", lambda *_: pytest.fail("looked through again"))
    again = load_split(shapes_folder, "train")
    assert list(again.records) == list(first.records)
    assert list((own_cache / "index").glob("*.partial")) == []


def test_one_in_a_hundred_is_skipped_and_counted(shapes_folder: Path, tmp_path: Path) -> None:
    samples = samples_of(shapes_folder, 200)
    samples[7], samples[70] = truncated(samples[7]), Sample(key="odd", png=samples[70].png, record={"id": "x"})
    corpus = load_split(written(samples, tmp_path / "set"), "train")
    assert len(corpus) == 198
    assert [sentence.split(":")[0] for sentence in corpus.skipped] == [
        "the picture of sample s7 cannot be decoded",
        "the record of sample odd has no captions",
    ]
    assert torch.equal(corpus.pixels([7]), load_split(shapes_folder, "train").pixels([8]))


def test_more_than_that_is_refused_by_name(shapes_folder: Path, tmp_path: Path) -> None:
    samples = samples_of(shapes_folder, 200)
    for number in (1, 2, 3):
        samples[number] = truncated(samples[number])
    folder = written(samples, tmp_path / "set")
    with pytest.raises(CorruptData, match=r"3 of 200 samples in split train of trial .* at most 2 .*s1.*s2.*s3"):
        load_split(folder, "train")


def test_only_the_first_few_are_named() -> None:
    with pytest.raises(CorruptData) as raised:
        check_corrupt([f"sample {n} is bad" for n in range(50)], 50, "here")
    assert "sample 7 is bad …" in str(raised.value)
    assert "sample 8" not in str(raised.value)


def test_a_shard_that_shrinks_under_a_reader_is_named(shapes_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    shutil.copytree(shapes_folder, folder)
    corpus = load_split(folder, "train", kept_bytes=0)
    (folder / "train-000000.tar").write_bytes(b"")
    with pytest.raises(CorruptData, match="became shorter"):
        corpus.pixels([0])


def test_a_folder_that_is_no_data_set_is_named(tmp_path: Path) -> None:
    with pytest.raises(CorruptData, match=r"has no manifest\.json"):
        load_split(tmp_path, "train")


def test_held_out_splits_are_those_with_samples(shapes_folder: Path, tmp_path: Path) -> None:
    assert held_out_splits(shapes_folder) == ("hard_style", "heldout_concepts", "heldout_style")
    assert held_out_splits(written(samples_of(shapes_folder, 3), tmp_path / "set")) == ()
    manifest = json.loads((tmp_path / "set" / "manifest.json").read_text())
    assert manifest["splits"]["train"]["samples"] == 3


def test_concepts_keep_their_pictures(shapes: Corpus) -> None:
    for concept, positions in shapes.by_concept().items():
        assert {shapes.records[position]["id"] for position in positions} == {concept}
