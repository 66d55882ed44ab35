"""A split in memory: pictures as one uint8 tensor, and their records."""

from __future__ import annotations

import io
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from belvedere_platform.artifacts import ArtifactNotFound, ArtifactStore
from belvedere_platform.errors import CorruptData, InvalidInput, NotFound
from belvedere_training.data.packages import cache_directory
from belvedere_training.data.shards import Sample, read_shard

LANGUAGES = ("en", "zh")
MEAN = 0.5
STD = 0.5


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Pictures [N, 3, S, S] and what is known of each."""

    name: str
    pixels_N3SS: Tensor
    records: Sequence[Mapping[str, Any]]
    pngs: Sequence[bytes]

    def __len__(self) -> int:
        return len(self.records)

    def captions(self, language: str) -> list[str]:
        """Return the caption of every picture in the language."""
        return [record["captions"][language] for record in self.records]

    def by_concept(self) -> dict[str, list[int]]:
        """Return the positions of each concept's pictures, in a fixed order."""
        positions: dict[str, list[int]] = defaultdict(list)
        for position, record in enumerate(self.records):
            positions[record["id"]].append(position)
        return dict(sorted(positions.items()))


def normalise(pixels_B3SS: Tensor) -> Tensor:
    """Return uint8 pixels as floats in [-1, 1]."""
    return pixels_B3SS.float().div(255).sub(MEAN).div(STD)


def resolve_dataset(store: ArtifactStore, reference: str) -> str:
    """Return the digest of the data set; NotFound says how to build it."""
    tag = reference if reference.startswith(("datasets/", "sha256:")) else f"datasets/{reference}"
    try:
        return store.resolve(tag).digest
    except ArtifactNotFound as error:
        raise NotFound(
            f"data set {reference!r} is not in {store.url}: build it with `belvedere data build emoji --output-tag {tag}`"
        ) from error


def pull_dataset(store: ArtifactStore, digest: str) -> Path:
    """Return the folder with the shards of this digest, kept in the cache between runs."""
    return store.pull(digest, cache_directory() / "pulled" / digest.removeprefix("sha256:")[:16])


def load_split(folder: Path, split: str) -> Corpus:
    """Read all shards of one split; errors name the split, shard or sample at fault."""
    manifest = json.loads((folder / "manifest.json").read_text())
    if split not in manifest["splits"]:
        raise InvalidInput(
            f"the data set {manifest['name']} has no split {split!r}; it has {', '.join(manifest['splits'])}"
        )
    shards = [folder / shard["file"] for shard in manifest["splits"][split]["shards"]]
    samples = [sample for shard in shards for sample in read_shard(shard)]
    size = manifest["size"]
    pixels_NSS3 = np.empty((len(samples), size, size, 3), np.uint8)
    for position, sample in enumerate(samples):
        pixels_NSS3[position] = _decode(sample, size)
    return Corpus(
        name=split,
        pixels_N3SS=torch.from_numpy(pixels_NSS3).permute(0, 3, 1, 2),
        records=[sample.record for sample in samples],
        pngs=[sample.png for sample in samples],
    )


def _decode(sample: Sample, size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    try:
        image = np.asarray(Image.open(io.BytesIO(sample.png)).convert("RGB"))
    except OSError as error:
        raise CorruptData(f"the picture of sample {sample.key} cannot be decoded: {error}") from error
    if image.shape != (size, size, 3):
        raise CorruptData(
            f"the picture of sample {sample.key} is {image.shape[1]}x{image.shape[0]}; the data set says {size}x{size}"
        )
    return image


def corpus_texts(corpus: Corpus) -> list[str]:
    """Return every caption and tag of the corpus once, in a fixed order."""
    texts = {
        text
        for record in corpus.records
        for language in LANGUAGES
        for text in (record["captions"][language], *record["tags"][language])
    }
    return sorted(texts)
