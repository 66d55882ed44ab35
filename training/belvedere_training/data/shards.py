"""WebDataset shards: tar files whose bytes depend on the samples alone, and their reader."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from belvedere_platform.errors import CorruptData

SAMPLES_PER_SHARD = 2048


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One picture with what is known of it; `key` has no dot, as WebDataset asks."""

    key: str
    png: bytes
    record: Mapping[str, Any]


def write_split(samples: Sequence[Sample], split: str, folder: Path) -> list[Path]:
    """Write the samples in the order given as SPLIT-000000.tar …, and return the files."""
    paths = []
    for number, start in enumerate(range(0, len(samples), SAMPLES_PER_SHARD)):
        path = folder / f"{split}-{number:06d}.tar"
        write_shard(samples[start : start + SAMPLES_PER_SHARD], path)
        paths.append(path)
    return paths


def write_shard(samples: Iterable[Sample], path: Path) -> int:
    """Write the samples as one tar, each when it comes, and return how many there were."""
    count = 0
    with path.open("wb") as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for sample in samples:
                record = json.dumps(sample.record, ensure_ascii=False, sort_keys=True).encode()
                _add(tar, f"{sample.key}.json", record)
                _add(tar, f"{sample.key}.png", sample.png)
                count += 1
        file.flush()
        os.fsync(file.fileno())
    return count


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)  # owner, time and mode keep their fixed defaults, so equal samples give equal bytes
    entry.size = len(data)
    tar.addfile(entry, io.BytesIO(data))


def read_shard(path: Path) -> Iterator[Sample]:
    """Yield the samples of one shard; CorruptData names a shard that is cut short, or empty, and the sample at fault."""
    record: Mapping[str, Any] | None = None
    key = ""
    count = 0
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                stem, _, extension = member.name.partition(".")
                file = tar.extractfile(member)
                assert file is not None
                data = file.read()
                if extension == "json":
                    key, record = stem, json.loads(data)
                elif extension == "png":
                    if record is None or stem != key:
                        raise CorruptData(f"shard {path.name}: {member.name} has no {stem}.json before it")
                    count += 1
                    yield Sample(key=key, png=data, record=record)
                    record = None
    except (tarfile.TarError, ValueError) as error:
        raise CorruptData(
            f"shard {path.name} is not a whole tar of samples (after {key or 'its start'}): {error}"
        ) from error
    if not count:
        raise CorruptData(f"shard {path.name} holds no sample: build the data set again (belvedere data build emoji)")
