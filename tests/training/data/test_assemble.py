"""Data sets from one's own pictures: four sources, skipped and refused rows, and builds that go on after a break."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from belvedere_platform.errors import BelvedereError, CorruptData, InvalidInput
from belvedere_training.data import assemble as module
from belvedere_training.data.assemble import AssembleOptions, Step, assemble, build_key, plan
from belvedere_training.data.corpus import load_split, read_manifest
from belvedere_training.data.rows import Row, from_csv, from_folder, from_jsonl, from_webdataset
from belvedere_training.data.verify import verify

COLOURS = ("red", "green", "blue", "white", "black", "orange")


def picture(colour: str, kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (40, 20), colour).save(out, kind)
    return out.getvalue()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Return a folder of six pictures with an English and a Chinese caption beside each."""
    folder = tmp_path / "pictures"
    (folder / "deep").mkdir(parents=True)
    for number, colour in enumerate(COLOURS):
        name = f"deep/{colour}" if number % 2 else colour
        (folder / f"{name}.jpg").write_bytes(picture(colour, "JPEG"))
        (folder / f"{name}.txt").write_text(f"a {colour} thing\n")
        (folder / f"{name}.zh.txt").write_text(f"东西{number}")
    return folder


def options(**changes: object) -> AssembleOptions:
    return AssembleOptions(**{"name": "mine", "licence": "CC0-1.0", "size": 16, "held_out": 0.0, **changes})  # type: ignore[arg-type]


def beside(folder: Path) -> list[Row]:
    return from_folder(folder, captions_from="beside", language="en")


def test_a_folder_becomes_a_data_set(pictures: Path, tmp_path: Path) -> None:
    folder = assemble(beside(pictures), options(), tmp_path / "set")
    corpus = load_split(folder, "train")
    assert sorted(corpus.captions("en")) == sorted(f"a {colour} thing" for colour in COLOURS)
    assert corpus.speaks("zh")
    assert corpus.pixels([0]).shape == (1, 3, 16, 16)
    manifest = read_manifest(folder)
    assert (manifest["languages"], manifest["licences"], manifest["skipped"]) == (["en", "zh"], ["CC0-1.0"], [])
    assert verify(folder).document() == {"samples": {"train": 6}, "problems": [], "corrupt": []}


def test_names_can_be_the_captions(pictures: Path) -> None:
    by_file = from_folder(pictures, captions_from="file-name", language="en")
    assert {row.captions["en"] for row in by_file} == set(COLOURS)
    by_folder = from_folder(pictures, captions_from="folder-name", language="en")
    assert {row.captions["en"] for row in by_folder} == {"pictures", "deep"}


def as_csv(pictures: Path, rows: Sequence[dict[str, str]]) -> Path:
    path = pictures / "list.csv"
    with path.open("w", newline="", encoding="utf8") as file:
        writer = csv.DictWriter(file, sorted({name for row in rows for name in row}))
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_a_csv_and_a_jsonl_say_the_same(pictures: Path, tmp_path: Path) -> None:
    flat = {"image": "red.jpg", "caption_en": "red", "caption_zh": "红", "tags_en": "warm|bright", "licence": "MIT"}
    path = as_csv(pictures, [{**flat, "split": "train", "mood": "good"}])
    lines = pictures / "list.jsonl"
    nested = {"image": "red.jpg", "caption": {"en": "red", "zh": "红"}, "tags": {"en": ["warm", "bright"]}}
    lines.write_text(json.dumps({**nested, "licence": "MIT", "split": "train", "mood": "good"}) + "\n\n")
    of_csv = from_csv(path, image="image", caption="caption", language="en")
    of_jsonl = from_jsonl(lines, image="image", caption="caption", language="en")
    for rows in (of_csv, of_jsonl):
        record = load_split(assemble(rows, options(), tmp_path / "set"), "train").records[0]
        assert record["captions"] == {"en": "red", "zh": "红"}
        assert record["tags"] == {"en": ["warm", "bright"]}
        assert (record["licence"], record["attributes"]) == ("MIT", {"mood": "good"})


def test_webdataset_shards_are_read_where_they_lie(tmp_path: Path) -> None:
    shard = tmp_path / "in" / "a.tar"
    shard.parent.mkdir()
    parts = {
        "x/1.jpg": picture("red", "JPEG"),
        "x/1.txt": b"one",
        "x/2.json": json.dumps({"caption": "two", "tags": ["t"]}).encode(),
        "x/2.png": picture("blue"),
        "x/3.txt": b"no picture",
    }
    with tarfile.open(shard, "w") as tar:
        for name, data in parts.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    rows = from_webdataset(shard.parent, caption="caption", language="en")
    folder = assemble(rows, options(max_corrupt=0.5), tmp_path / "set")
    assert sorted(load_split(folder, "train").captions("en")) == ["one", "two"]
    assert read_manifest(folder)["skipped"] == ["a.tar: x/3 has no picture"]


def test_rows_that_cannot_be_used_are_skipped_up_to_the_limit(pictures: Path, tmp_path: Path) -> None:
    (pictures / "red.jpg").write_bytes((pictures / "red.jpg").read_bytes()[:200])
    (pictures / "deep" / "green.txt").unlink()
    (pictures / "deep" / "green.zh.txt").unlink()
    with pytest.raises(CorruptData, match=r"2 of 6 samples in mine cannot be used, and at most 0") as raised:
        assemble(beside(pictures), options(), tmp_path / "strict")
    assert "red.jpg: the picture cannot be decoded" in str(raised.value)
    assert "there is no green.txt with its caption beside it" in str(raised.value)
    folder = assemble(beside(pictures), options(max_corrupt=0.5), tmp_path / "lenient")
    assert len(load_split(folder, "train")) == 4
    assert len(read_manifest(folder)["skipped"]) == 2


def test_a_broken_build_goes_on_with_the_next_shard(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SAMPLES_PER_SHARD", 2)
    rows = beside(pictures)
    whole = assemble(rows, options(), tmp_path / "whole")

    def break_off(step: Step) -> None:
        if step.num_done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        assemble(rows, options(), tmp_path / "set", break_off)
    assert not (tmp_path / "set").exists()
    assert not list(tmp_path.rglob("*.partial"))
    steps: list[Step] = []
    folder = assemble(rows, options(), tmp_path / "set", steps.append)
    assert [step.resumed for step in steps] == [True, True, False]
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {p.name: p.read_bytes() for p in whole.iterdir()}


def test_the_share_held_out_is_near_what_was_asked_and_always_the_same() -> None:
    rows = [Row(key=f"k{n}", where="", file=Path("x"), captions={"en": "x"}) for n in range(2000)]
    shards = plan(rows, 0.25)
    held = {row.key for shard in shards if shard.split == "heldout" for row in shard.rows}
    assert 400 < len(held) < 600
    assert held == {row.key for shard in plan(rows[::-1], 0.25) if shard.split == "heldout" for row in shard.rows}
    assert sorted(row.key for shard in shards for row in shard.rows) == sorted(row.key for row in rows)


def test_the_key_follows_files_and_options(pictures: Path) -> None:
    before = build_key(beside(pictures), options())
    assert before == build_key(beside(pictures), options(workers=3))
    assert before != build_key(beside(pictures), options(size=32))
    (pictures / "red.jpg").write_bytes(picture("pink", "JPEG"))
    assert before != build_key(beside(pictures), options())


@pytest.mark.parametrize(
    ("header", "line", "message"),
    [
        ("picture,caption", "red.jpg,red", "has no column 'image'; it has picture, caption: name yours with --image"),
        ("image,text", "red.jpg,red", "has no column 'caption' or caption_LANG; it has image, text"),
        ("image,caption,split", "red.jpg,red,My Split", "list.csv line 2: split is 'My Split'"),
    ],
)
def test_a_wrong_csv_says_what_it_has(pictures: Path, header: str, line: str, message: str) -> None:
    path = pictures / "list.csv"
    path.write_text(f"{header}\n{line}\n")
    with pytest.raises(BelvedereError) as raised:
        from_csv(path, image="image", caption="caption", language="en")
    assert message in str(raised.value)


@pytest.mark.parametrize("read", [from_csv, from_jsonl])
def test_a_table_that_is_not_utf8_is_named(tmp_path: Path, read: Any) -> None:
    (tmp_path / "table").write_bytes(b"image,caption\n" * (read is from_csv) + b'{"caf\xe9": 1}\n')
    with pytest.raises(InvalidInput, match=r"table is not UTF-8 text"):
        read(tmp_path / "table", image="image", caption="caption", language="en")


def test_a_caption_that_is_not_utf8_costs_its_own_picture_alone(pictures: Path) -> None:
    (pictures / "red.txt").write_bytes(b"caf\xe9")
    (wrong,) = [row for row in beside(pictures) if row.problem]
    assert wrong.problem == "red.txt: not UTF-8"


def test_two_pictures_of_one_name_are_told(pictures: Path) -> None:
    (pictures / "red.png").write_bytes(picture("red"))
    (pictures / "red.txt").write_text("red")
    with pytest.raises(InvalidInput, match=r"red.jpg and red.png have the same key 'red'"):
        plan(beside(pictures), 0.1)


def test_verify_names_what_is_wrong(pictures: Path, tmp_path: Path) -> None:
    folder = assemble(beside(pictures), options(), tmp_path / "set")
    shard = folder / "train-000000.tar"
    data = bytearray(shard.read_bytes())
    at = data.index(b"IDAT")
    data[at + 4 : at + 8] = b"\0\0\0\0"
    shard.write_bytes(bytes(data))
    found = verify(folder)
    assert found.problems == [
        "shard train-000000.tar has not the sha256 that the manifest says",
        "split train has 5 usable samples, the manifest says 6",
    ]
    assert len(found.corrupt) == 1


def test_nothing_to_train_on_is_told(pictures: Path, tmp_path: Path) -> None:
    rows = [Row(key="k", where="k", file=pictures / "red.jpg", captions={"en": "x"}, facts={"split": "heldout"})]
    with pytest.raises(InvalidInput, match="no sample is left for training"):
        assemble(rows, options(), tmp_path / "set")
