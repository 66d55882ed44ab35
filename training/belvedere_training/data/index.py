"""Where each sample of a shard lies and which cannot be used: found by one pass over the shard, kept in the cache."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from belvedere_platform.errors import CorruptData
from belvedere_training.data.packages import cache_directory

_FORM = 1  # raise it when an index of the same shard shall be made again


class Place(NamedTuple):
    """Where the record and the picture of one sample lie in their shard."""

    key: str
    concept: str
    record_offset: int
    record_size: int
    picture_offset: int
    picture_size: int


@dataclass(frozen=True, kw_only=True)
class ShardIndex:
    """The usable samples of one shard in their order, and what is wrong with each of the others."""

    file: Path
    places: tuple[Place, ...]
    corrupt: tuple[str, ...]
    languages: tuple[str, ...]


def index_of(shard: Path, sha256: str, size: int) -> ShardIndex:
    """Return the index of the shard, from the cache when these bytes were looked through before."""
    kept = cache_directory() / "index" / f"{sha256}-{size}-{_FORM}.json"
    if kept.is_file() and kept.stat().st_mtime >= shard.stat().st_mtime:
        document = json.loads(kept.read_text())
        places = tuple(Place(*place) for place in document["places"])
        return ShardIndex(
            file=shard,
            places=places,
            corrupt=tuple(document["corrupt"]),
            languages=tuple(document["languages"]),
        )
    index = look_through(shard, size)
    kept.parent.mkdir(parents=True, exist_ok=True)
    partial = kept.with_suffix(f".{id(index)}.partial")
    partial.write_text(json.dumps({**asdict(index), "file": shard.name}, ensure_ascii=False))
    partial.replace(kept)
    return index


def look_through(shard: Path, size: int) -> ShardIndex:
    """Read the whole shard once, sample by sample. CorruptData names a shard that is no tar, is cut short or is empty."""
    places: list[Place] = []
    corrupt: list[str] = []
    languages: dict[str, None] = {}
    for name, parts in _grouped(shard):
        try:
            place, record = _checked(name, parts, size)
        except CorruptData as error:
            corrupt.append(str(error))
            continue
        places.append(place)
        languages.update(dict.fromkeys(record["captions"]))
    if not places and not corrupt:
        raise CorruptData(f"shard {shard.name} holds no sample: build the data set again (belvedere data build --help)")
    return ShardIndex(file=shard, places=tuple(places), corrupt=tuple(corrupt), languages=tuple(languages))


class _Part(NamedTuple):
    offset: int
    data: bytes


def _grouped(shard: Path) -> Iterator[tuple[str, dict[str, _Part]]]:
    """Yield (key, parts by extension) of neighbours in the tar that share a key."""
    key, parts = "", dict[str, _Part]()
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                stem, _, extension = member.name.partition(".")
                file = tar.extractfile(member)
                if file is None:
                    continue
                if stem != key and parts:
                    yield key, parts
                    parts = {}
                key = stem
                parts[extension] = _Part(member.offset_data, file.read())
    except tarfile.TarError as error:
        where = f"after {key}" if key else "at its start"
        raise CorruptData(f"shard {shard.name} is not a whole tar of samples ({where}): {error}") from error
    if parts:
        yield key, parts


def _checked(key: str, parts: Mapping[str, _Part], size: int) -> tuple[Place, Mapping[str, Any]]:
    for extension in ("json", "png"):
        if extension not in parts:
            raise CorruptData(f"sample {key} has no {key}.{extension}")
    record_at, picture_at = parts["json"], parts["png"]
    record = read_record(key, record_at.data)
    decode(key, picture_at.data, size)
    place = Place(
        key,
        record["id"],
        record_at.offset,
        len(record_at.data),
        picture_at.offset,
        len(picture_at.data),
    )
    return place, record


def read_record(key: str, data: bytes) -> Mapping[str, Any]:
    """Return the record; CorruptData names the sample and what its record lacks."""
    try:
        record = json.loads(data)
    except ValueError as error:
        raise CorruptData(f"the record of sample {key} is not JSON: {error}") from error
    if not isinstance(record, dict) or not isinstance(record.get("id"), str):
        raise CorruptData(f"the record of sample {key} has no id")
    if not isinstance(record.get("captions"), dict) or not any(record["captions"].values()):
        raise CorruptData(f"the record of sample {key} has no captions")
    return record


def decode(key: str, png: bytes, size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return the picture as [size, size, 3]; CorruptData names the sample that is truncated or of another size."""
    try:
        image = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # what Pillow raises on damage
        raise CorruptData(f"the picture of sample {key} cannot be decoded: {error}") from error
    if image.shape != (size, size, 3):
        raise CorruptData(
            f"the picture of sample {key} is {image.shape[1]}x{image.shape[0]}; the data set says {size}x{size}"
        )
    return image
