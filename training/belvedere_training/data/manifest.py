"""A data set as a folder of shards with a manifest, and as an artifact."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from belvedere_platform.artifacts import ArtifactKind, ArtifactStore, Descriptor
from belvedere_training.data.shards import Sample, write_split

SPLITS = ("train", "heldout_style", "heldout_concepts", "hard_style")


def write_dataset(samples: Mapping[str, Sequence[Sample]], facts: Mapping[str, Any], folder: Path) -> Path:
    """Write all shards, and the manifest that names them with their sha256: whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".partial-") as partial:
        unfinished = Path(partial) / "data"
        unfinished.mkdir()
        parts = {
            split: (len(samples.get(split, ())), write_split(samples.get(split, ()), split, unfinished))
            for split in SPLITS
        }
        write_manifest(parts, {"languages": ["en", "zh"], **facts}, unfinished)
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.rename(folder)
    return folder


def write_manifest(parts: Mapping[str, tuple[int, Sequence[Path]]], facts: Mapping[str, Any], folder: Path) -> None:
    """Write manifest.json: the facts, and of each split how many samples, in which files with which sha256."""
    splits = {
        split: {
            "samples": count,
            "shards": [{"file": file.name, "sha256": sha256_of(file)} for file in files],
        }
        for split, (count, files) in parts.items()
    }
    digest = "sha256:" + hashlib.sha256(json.dumps(splits, sort_keys=True).encode()).hexdigest()
    text = json.dumps({**facts, "splits": splits, "digest": digest}, indent=1, ensure_ascii=False, sort_keys=True)
    (folder / "manifest.json").write_text(text, encoding="utf8")


def sha256_of(path: Path) -> str:
    """Return the digest of a file's bytes, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def push(folder: Path, store: ArtifactStore, tag: str) -> Descriptor:
    """Push the built data set under the tag; the same bytes give the same digest."""
    manifest = json.loads((folder / "manifest.json").read_text())
    files: dict[str, Path | bytes] = {path.name: path for path in sorted(folder.iterdir())}
    config = {
        "name": manifest["name"],
        "splits": {
            split: {"samples": part["samples"], "shards": len(part["shards"])}
            for split, part in manifest["splits"].items()
        },
        "styles": sorted(manifest["styles"]),
        "licences": manifest["licences"],
        "languages": manifest["languages"],
        "size": manifest["size"],
        "contentDigest": manifest["digest"],
    }
    return store.push(ArtifactKind.DATASET, files, config=config, tag=tag)
