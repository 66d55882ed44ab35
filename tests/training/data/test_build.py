"""The emoji build on packages of a few drawings: splits, licences, equal bytes, and what it says when something is missing."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from belvedere_platform.artifacts import ArtifactStore
from belvedere_platform.errors import CorruptData, InvalidInput, Unavailable
from belvedere_training.data.build import BuildOptions, build, build_key, needed_packages
from belvedere_training.data.concepts import held_out_concepts
from belvedere_training.data.corpus import load_split, resolve_dataset
from belvedere_training.data.manifest import push
from belvedere_training.data.packages import PACKAGES, fetch

pytest.importorskip("resvg_py")
NAMES = [f"thing{chr(97 + n)}" for n in range(26)]
STYLES = ("noto", "twemoji", "openmoji-black", "emojione2")


def tarball(path: Path, files: dict[str, str]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, text in files.items():
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(text.encode())
            tar.addfile(entry, io.BytesIO(text.encode()))
    return path


def hexcode(number: int) -> str:
    return f"{0x1F600 + number:X}"


@pytest.fixture
def tarballs(tmp_path: Path) -> dict[str, Path]:
    """Return packages in the form of the real ones, with 26 concepts that are each a family."""
    entries = [
        {"hexcode": hexcode(n), "label": name, "tags": [name[0]], "group": 7, "subgroup": 70}
        for n, name in enumerate(NAMES)
    ]
    chinese = [{**entry, "label": f"东西{n}"} for n, entry in enumerate(entries)]
    names = {"en/data.json": json.dumps(entries), "zh/data.json": json.dumps(chinese)}
    names["meta/groups.json"] = json.dumps({"groups": {"7": "objects"}, "subgroups": {"70": "computer"}})
    names["meta/unicode-names.json"] = "{}"
    names |= {f"en/shortcodes/{s}.json": "{}" for s in ("joypixels", "github", "iamcal", "cldr", "emojibase")}
    body = '<rect x="1" y="1" width="{0}" height="9" fill="red"/>'
    icons = json.dumps(
        {"width": 32, "height": 32, "icons": {n: {"body": body.format(i + 2)} for i, n in enumerate(NAMES)}}
    )
    by_code = json.dumps({hexcode(n).lower(): name for n, name in enumerate(NAMES)})
    svg = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32">{0}</svg>'
    drawn = {f"black/svg/{hexcode(n)}.svg": svg.format(body.format(max(n, 5))) for n in range(26)}
    return {
        "emojibase-data": tarball(tmp_path / "names.tgz", names),
        "@iconify-json/noto": tarball(tmp_path / "noto.tgz", {"icons.json": icons, "chars.json": by_code}),
        "@iconify-json/twemoji": tarball(tmp_path / "twemoji.tgz", {"icons.json": icons, "chars.json": by_code}),
        "@iconify-json/emojione": tarball(tmp_path / "emojione.tgz", {"icons.json": icons, "chars.json": "{}"}),
        "openmoji": tarball(tmp_path / "openmoji.tgz", drawn),
    }


def built(tarballs: dict[str, Path], folder: Path, **changes: Any) -> Path:
    return build(BuildOptions(styles=STYLES, size=16, workers=1, **changes), tarballs, folder, lambda _: None)


def test_the_same_packages_give_the_same_bytes(tarballs: dict[str, Path], tmp_path: Path) -> None:
    one, other = built(tarballs, tmp_path / "one"), built(tarballs, tmp_path / "other")
    assert {p.name: p.read_bytes() for p in one.iterdir()} == {p.name: p.read_bytes() for p in other.iterdir()}
    store = ArtifactStore((tmp_path / "artifacts").as_uri())
    assert push(one, store, "datasets/a").digest == push(other, store, "datasets/b").digest


def test_held_out_concepts_and_styles_are_not_in_training(tarballs: dict[str, Path], tmp_path: Path) -> None:
    folder = built(tarballs, tmp_path / "data")
    train, style = load_split(folder, "train"), load_split(folder, "heldout_style")
    concepts, hard = load_split(folder, "heldout_concepts"), load_split(folder, "hard_style")
    seen = {record["id"] for record in train.records}
    assert {record["style"] for record in train.records} == {"noto", "emojione2"}
    assert {record["id"] for record in style.records} == seen
    assert not {record["id"] for record in concepts.records} & seen
    assert len(concepts) == 3
    assert {record["id"] for record in hard.records} < seen, "equal pictures are dropped"
    assert {record["licence"] for record in train.records} == {"Apache-2.0", "CC-BY-4.0"}


def test_single_concepts_can_be_held_out_instead_of_families(tarballs: dict[str, Path], tmp_path: Path) -> None:
    folder = built(tarballs, tmp_path / "data", held_out="concepts")
    seen = {record["id"] for record in load_split(folder, "train").records}
    names = {record["id"] for record in load_split(folder, "heldout_style").records}
    held = {record["id"] for record in load_split(folder, "heldout_concepts").records}
    assert held == held_out_concepts(names | held)
    assert names == seen
    assert build_key(BuildOptions(held_out="concepts")) != build_key(BuildOptions())


def test_an_unknown_style_is_answered_with_those_there_are() -> None:
    with pytest.raises(InvalidInput, match=r"--styles has 'appel'; allowed are noto, noto-blob"):
        BuildOptions(styles=("appel",)).check()


def test_a_missing_data_set_says_how_to_build_it(tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"belvedere data build emoji --output-tag datasets/emoji"):
        resolve_dataset(ArtifactStore((tmp_path / "empty").as_uri()), "emoji")


def test_without_npm_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable, match="apt-get install npm"):
        fetch([PACKAGES["openmoji"]], tmp_path)


def test_a_wrong_download_is_refused_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = PACKAGES["openmoji"]
    fake = tmp_path / "bin" / "npm"
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/sh\necho wrong > "$5/{package.file_name}"\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:/usr/bin:/bin")
    with pytest.raises(CorruptData, match=r"openmoji@17\.0\.0 as downloaded is not the pinned file"):
        fetch([package], tmp_path / "cache")
    assert list((tmp_path / "cache" / "npm").iterdir()) == []


def test_only_the_packages_of_the_chosen_styles_are_needed() -> None:
    names = [package.name for package in needed_packages(BuildOptions(styles=("noto",)))]
    assert names == ["emojibase-data", "@iconify-json/noto"]
