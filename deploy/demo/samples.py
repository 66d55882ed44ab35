"""Pictures and captions of the held-out style, read from the data set artifact."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from belvedere_platform.artifacts import ArtifactStore


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One drawing with its names."""

    id: str
    png: bytes
    en: str
    zh: str


def read_split(store: ArtifactStore, dataset: str, split: str, into: Path) -> list[Sample]:
    """Return all samples of one split, in the order of the shards."""
    directory = store.pull(dataset, into)
    return [sample for shard in sorted(directory.glob(f"{split}-*.tar")) for sample in _read_shard(shard)]


def _read_shard(shard: Path) -> Iterator[Sample]:
    parts: dict[str, dict[str, bytes]] = {}
    with tarfile.open(fileobj=io.BytesIO(shard.read_bytes())) as archive:
        for member in archive:
            content = archive.extractfile(member)
            assert content is not None, f"{shard.name} holds {member.name}, which is not a file"
            key, _, suffix = member.name.rpartition(".")
            parts.setdefault(key, {})[suffix] = content.read()
    for files in parts.values():
        meta = json.loads(files["json"])
        yield Sample(id=meta["id"], png=files["png"], en=meta["captions"]["en"], zh=meta["captions"]["zh"])


def write_traffic_samples(samples: list[Sample], path: Path) -> None:
    """Write what the traffic generator reads: one JSON object a line."""
    path.write_text("".join(json.dumps({"en": s.en, "zh": s.zh, "png": s.png.hex()}) + "\n" for s in samples))
