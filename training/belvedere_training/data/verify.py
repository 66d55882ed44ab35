"""Look a whole data set through: bytes against the manifest, every picture and record, keys, licences."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from belvedere_platform.errors import CorruptData
from belvedere_training.data.corpus import read_manifest
from belvedere_training.data.index import look_through
from belvedere_training.data.manifest import sha256_of

_EXAMPLES = 3


@dataclass(kw_only=True)
class Findings:
    """What was found. `problems` are faults of the set as a whole, `corrupt` single samples that cannot be used."""

    samples: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    corrupt: list[str] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """Return the findings as JSON holds them."""
        return {"samples": dict(self.samples), "problems": self.problems, "corrupt": self.corrupt}


def verify(folder: Path, progress: Callable[[str], None] = lambda _: None) -> Findings:
    """Read everything once and return what is wrong, if anything."""
    manifest = read_manifest(folder)
    found = Findings()
    if not manifest.get("licences"):
        found.problems.append("the manifest names no licence")
    keys: Counter[str] = Counter()
    for split, part in manifest["splits"].items():
        for entry in part["shards"]:
            shard = folder / entry["file"]
            progress(entry["file"])
            keys.update(_look(shard, entry["sha256"], manifest, split, found))
        declared, seen = part["samples"], found.samples[split]
        if seen != declared:
            found.problems.append(f"split {split} has {seen} usable samples, the manifest says {declared}")
    found.problems += [f"key {key} comes {times} times" for key, times in keys.items() if times > 1]
    return found


def _look(shard: Path, sha256: str, manifest: dict[str, Any], split: str, found: Findings) -> list[str]:
    """Add what is wrong with one shard, and return its keys with the split before them."""
    if not shard.is_file():
        found.problems.append(f"shard {shard.name} is missing")
        return []
    if sha256_of(shard) != sha256:
        found.problems.append(f"shard {shard.name} has not the sha256 that the manifest says")
    try:
        index = look_through(shard, manifest["size"])
    except CorruptData as error:
        found.problems.append(str(error))
        return []
    found.samples[split] += len(index.places)
    found.corrupt += index.corrupt
    licences = set(manifest.get("licences", ()))
    with shard.open("rb") as file:
        for place in index.places:
            file.seek(place.record_offset)
            licence = json.loads(file.read(place.record_size)).get("licence")
            if licence not in licences:
                found.problems.append(
                    f"sample {place.key} has the licence {licence!r}, which the manifest does not name"
                )
    return [f"{split}/{place.key}" for place in index.places]


def summary(folder: Path) -> dict[str, Any]:
    """Return what the manifest says of the set, with a few captions of each split."""
    from belvedere_training.data.corpus import load_split

    manifest = read_manifest(folder)
    splits = {}
    for split, part in manifest["splits"].items():
        corpus = load_split(folder, split, kept_bytes=0) if part["samples"] else None
        captions = [dict(corpus.records[n]["captions"]) for n in range(min(_EXAMPLES, len(corpus)))] if corpus else []
        splits[split] = {"samples": part["samples"], "shards": len(part["shards"]), "captions": captions}
    kept = ("name", "digest", "size", "languages", "licences", "styles")
    return {name: manifest.get(name) for name in kept} | {
        "splits": splits,
        "skipped": len(manifest.get("skipped", ())),
    }
