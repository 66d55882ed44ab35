"""A split of a data set, read sample by sample: in memory are only where each lies, and decoded pictures up to a limit."""

from __future__ import annotations

import json
import os
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from belvedere_platform.artifacts import ArtifactNotFound, ArtifactStore
from belvedere_platform.errors import CorruptData, InvalidInput, NotFound
from belvedere_training.data.index import ShardIndex, decode, index_of
from belvedere_training.data.packages import cache_directory
from belvedere_training.data.texts import statement

KEPT_BYTES = 256 * 2**20
"""Decoded pictures that a split may keep in memory; what does not fit is decoded again each time."""
CORRUPT_SHARE = 0.01
"""More samples than this share that cannot be used are not skipped but refused."""
_NAMED = 8

# N samples, B batch, S picture edge


class Corpus:
    """Pictures and records of one split by position. Safe to read from several threads."""

    def __init__(self, name: str, size: int, indexes: Sequence[ShardIndex], *, kept_bytes: int = KEPT_BYTES) -> None:
        self.name, self.size = name, size
        self.skipped = tuple(sentence for index in indexes for sentence in index.corrupt)
        found = {language for index in indexes for language in index.languages}
        self.languages = tuple(sorted(found))
        self._files = [_SharedFile(index.file) for index in indexes]
        self._places = [(number, place) for number, index in enumerate(indexes) for place in index.places]
        self._kept: dict[int, np.ndarray[Any, np.dtype[np.uint8]]] = {}
        self._num_kept = kept_bytes // (size * size * 3)
        self.records: Sequence[Mapping[str, Any]] = _Records(self)

    def __len__(self) -> int:
        return len(self._places)

    def record(self, position: int) -> Mapping[str, Any]:
        """Return what is known of the picture."""
        number, place = self._places[position]
        record: Mapping[str, Any] = json.loads(self._files[number].read(place.record_offset, place.record_size))
        return record

    def png(self, position: int) -> bytes:
        """Return the picture as it is stored."""
        number, place = self._places[position]
        return self._files[number].read(place.picture_offset, place.picture_size)

    def pixels(self, positions: Sequence[int]) -> Tensor:
        """Return the pictures as uint8 [B, 3, S, S]."""
        pixels_BSS3 = np.empty((len(positions), self.size, self.size, 3), np.uint8)
        for row, position in enumerate(positions):
            pixels_BSS3[row] = self._picture(position)
        return torch.from_numpy(pixels_BSS3).permute(0, 3, 1, 2)

    def _picture(self, position: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        picture = self._kept.get(position)
        if picture is None:
            picture = decode(self._places[position][1].key, self.png(position), self.size)
            # First come, first kept: every epoch visits all, so the most recent is no likelier to be needed next.
            if len(self._kept) < self._num_kept:
                self._kept[position] = picture
        return picture

    def chunks(self, count: int) -> Iterator[Tensor]:
        """Yield all pictures in their order, so many at a time."""
        for start in range(0, len(self), count):
            yield self.pixels(range(start, min(start + count, len(self))))

    def captions(self, language: str) -> list[str]:
        """Return the caption of every picture in the language."""
        return [record["captions"][language] for record in self.records]

    def speaks(self, language: str) -> bool:
        """Return whether every picture has a caption in the language."""
        return language in self.languages and all(language in record["captions"] for record in self.records)

    def values(self, attribute: str) -> list[str]:
        """Return what the attribute is in any record, in order; nothing where some record lacks it."""
        found = {str(record[attribute]) if attribute in record else None for record in self.records}
        return [] if None in found else sorted(value for value in found if value is not None)

    def by_concept(self) -> dict[str, list[int]]:
        """Return the positions of each concept's pictures, in a fixed order."""
        positions: dict[str, list[int]] = defaultdict(list)
        for position, (_, place) in enumerate(self._places):
            positions[place.concept].append(position)
        return dict(sorted(positions.items()))


class _Records(Sequence[Mapping[str, Any]]):
    """The records of a corpus, each read when it is asked for."""

    def __init__(self, corpus: Corpus) -> None:
        self._corpus = corpus

    def __len__(self) -> int:
        return len(self._corpus)

    @overload
    def __getitem__(self, position: int) -> Mapping[str, Any]: ...

    @overload
    def __getitem__(self, position: slice) -> Sequence[Mapping[str, Any]]: ...

    def __getitem__(self, position: int | slice) -> Mapping[str, Any] | Sequence[Mapping[str, Any]]:
        if isinstance(position, slice):
            return [self._corpus.record(one) for one in range(*position.indices(len(self)))]
        return self._corpus.record(range(len(self))[position])


class _SharedFile:
    """A file opened at its first use, read at offsets, so that threads need no lock for it; closed when nobody needs it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None
        self._opening = threading.Lock()

    def read(self, offset: int, size: int) -> bytes:
        with self._opening:
            if self._descriptor is None:
                self._descriptor = os.open(self._path, os.O_RDONLY)
        data = os.pread(self._descriptor, size, offset)
        if len(data) != size:
            raise CorruptData(f"shard {self._path.name} became shorter while it was read: pull the data set again")
        return data

    def __del__(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)


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


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return manifest.json of a data set's folder; CorruptData says what to do when there is none."""
    path = folder / "manifest.json"
    if not path.is_file():
        raise CorruptData(f"{folder} has no manifest.json: it is no data set; build one (belvedere data build --help)")
    manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf8"))
    return manifest


def held_out_splits(folder: Path) -> tuple[str, ...]:
    """Return the splits that are not for training, in the manifest's order, those that have samples."""
    splits = read_manifest(folder)["splits"]
    return tuple(split for split, part in splits.items() if split != "train" and part["samples"])


def load_split(folder: Path, split: str, *, kept_bytes: int = KEPT_BYTES) -> Corpus:
    """Return one split. A few samples that cannot be used are skipped; more than that are refused by name."""
    manifest = read_manifest(folder)
    if split not in manifest["splits"]:
        raise InvalidInput(
            f"the data set {manifest['name']} has no split {split!r}; it has {', '.join(manifest['splits'])}"
        )
    shards = manifest["splits"][split]["shards"]
    indexes = [index_of(folder / shard["file"], shard["sha256"], manifest["size"]) for shard in shards]
    corpus = Corpus(split, manifest["size"], indexes, kept_bytes=kept_bytes)
    check_corrupt(corpus.skipped, len(corpus), f"split {split} of {manifest['name']}")
    return corpus


def check_corrupt(corrupt: Sequence[str], num_usable: int, where: str, share: float = CORRUPT_SHARE) -> None:
    """Raise CorruptData, naming the first few samples, when more than the share of all cannot be used."""
    total = num_usable + len(corrupt)
    allowed = int(share * total)
    if len(corrupt) > allowed:
        named = "; ".join(corrupt[:_NAMED]) + (" …" if len(corrupt) > _NAMED else "")
        raise CorruptData(
            f"{len(corrupt)} of {total} samples in {where} cannot be used, and at most {allowed} may be skipped: {named}"
        )


def corpus_texts(corpus: Corpus) -> list[str]:
    """Return every caption, tag and answered question of the corpus once, in a fixed order."""
    texts: set[str] = set()
    for record in corpus.records:
        for language, caption in record["captions"].items():
            texts.update((caption, *record["tags"].get(language, ())))
        texts.update(statement(*asked) for asked in record.get("questions", ()))
    return sorted(texts)
