"""From rows to a data set: choose splits, scale pictures, write shard after shard so that a broken build goes on."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from belvedere_platform.errors import CorruptData, InvalidInput
from belvedere_training.data.corpus import CORRUPT_SHARE, check_corrupt
from belvedere_training.data.manifest import write_manifest
from belvedere_training.data.render import fit_and_pad
from belvedere_training.data.rows import Row
from belvedere_training.data.shards import SAMPLES_PER_SHARD, Sample, write_shard

BUILDER = 1  # raise it when the same rows shall give other bytes
HELD_OUT = "heldout"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
"""Part of a tag, and of a folder in the cache."""


@dataclass(frozen=True, kw_only=True)
class AssembleOptions:
    """What to make of the rows. `licence` is that of rows which name none of their own."""

    name: str
    licence: str
    author: str = ""
    size: int = 64
    held_out: float = 0.1
    max_corrupt: float = CORRUPT_SHARE
    workers: int = 1

    def check(self) -> None:
        """Raise InvalidInput for a value that cannot be built."""
        if not _NAME.fullmatch(self.name):
            raise InvalidInput(
                f"--name is {self.name!r}; use at most 63 letters, digits, '-', '_' and '.', the first a letter or a digit"
            )
        if not 16 <= self.size <= 512:
            raise InvalidInput(f"--size is {self.size}; allowed are 16 to 512 pixels")
        if not 0 <= self.held_out < 1:
            raise InvalidInput(f"--held-out is {self.held_out}; allowed is a share from 0 to below 1")
        if not 0 <= self.max_corrupt <= 1:
            raise InvalidInput(f"--max-corrupt is {self.max_corrupt}; allowed is a share from 0 to 1")
        if not self.licence.strip():
            raise InvalidInput("--licence is empty; give the SPDX name of the pictures' licence, for example CC-BY-4.0")


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One shard that is to be written."""

    split: str
    number: int
    rows: tuple[Row, ...]

    @property
    def file(self) -> str:
        """Return its file name."""
        return f"{self.split}-{self.number:06d}.tar"


@dataclass(frozen=True, kw_only=True)
class Step:
    """How far a build is."""

    num_done: int
    num_rows: int
    num_skipped: int
    file: str
    resumed: bool


def build_key(rows: Sequence[Row], options: AssembleOptions) -> str:
    """Return a hash of what the data set is made of: rows, options, and each file's size and time of change."""
    digest = hashlib.sha256(
        json.dumps([BUILDER, options.name, options.licence, options.size, options.held_out]).encode()
    )
    stamps: dict[Path, tuple[int, int]] = {}
    for row in rows:
        if row.file not in stamps:
            stamps[row.file] = _stamp(row.file)
        facts = [row.key, row.captions, row.tags, row.facts, row.offset, stamps[row.file]]
        digest.update(json.dumps(facts, sort_keys=True, ensure_ascii=False, default=list).encode())
    return digest.hexdigest()


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:
        return (-1, -1)
    return found.st_size, found.st_mtime_ns


def plan(rows: Sequence[Row], held_out: float) -> list[Shard]:
    """Return the shards: each row in its own split or by the hash of its key, in the order of that hash."""
    names = Counter(row.key for row in rows)
    double, times = names.most_common(1)[0]
    if times > 1:
        both = [row.where for row in rows if row.key == double][:2]
        raise InvalidInput(f"{' and '.join(both)} have the same key {double!r}: give the pictures different names")
    splits: dict[str, list[tuple[bytes, Row]]] = {"train": []}
    for row in rows:
        order = hashlib.sha256(row.key.encode()).digest()
        share = int.from_bytes(order[:6], "big") / 2**48
        split = row.facts.get("split") or (HELD_OUT if share < held_out else "train")
        splits.setdefault(split, []).append((order, row))
    return [
        Shard(split=split, number=start // SAMPLES_PER_SHARD, rows=tuple(row for _, row in found))
        for split, members in splits.items()
        for ordered in (sorted(members, key=lambda member: member[0]),)
        for start in range(0, len(ordered), SAMPLES_PER_SHARD)
        for found in (ordered[start : start + SAMPLES_PER_SHARD],)
    ]


def assemble(
    rows: Sequence[Row], options: AssembleOptions, folder: Path, progress: Callable[[Step], None] = lambda _: None
) -> Path:
    """Write the data set into the folder, whole or not at all, and return it.

    Whole shards of a broken build lie in a folder beside it and are not written again. CorruptData names the rows when
    more of them than `max_corrupt` cannot be used.
    """
    options.check()
    unfinished = folder.with_name(f".building-{folder.name}")
    unfinished.mkdir(parents=True, exist_ok=True)
    shards = plan(rows, options.held_out)
    journals: dict[str, dict[str, Any]] = {}
    num_done = 0
    with ThreadPoolExecutor(options.workers, thread_name_prefix="belvedere-data") as pool:
        try:
            for shard in shards:
                journal = unfinished / f"{shard.file}.json"
                resumed = journal.is_file() and (unfinished / shard.file).is_file()
                if not resumed:
                    document = _write(shard, options, unfinished / shard.file, pool)
                    journal.write_text(json.dumps(document, ensure_ascii=False))
                journals[shard.file] = json.loads(journal.read_text())
                num_done += len(shard.rows)
                corrupt = [sentence for kept in journals.values() for sentence in kept["corrupt"]]
                step = Step(
                    num_done=num_done,
                    num_rows=len(rows),
                    num_skipped=len(corrupt),
                    file=shard.file,
                    resumed=resumed,
                )
                progress(step)
                check_corrupt(corrupt, len(rows) - len(corrupt), options.name, options.max_corrupt)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    return _finish(shards, journals, options, unfinished, folder)


def _write(shard: Shard, options: AssembleOptions, path: Path, pool: ThreadPoolExecutor) -> dict[str, Any]:
    """Write one shard whole or not at all, and return what its journal says."""
    corrupt: list[str] = []
    languages: Counter[str] = Counter()
    styles: Counter[tuple[str, str]] = Counter()

    def usable() -> Iterator[Sample]:
        for made in _in_order(pool, shard.rows, options):
            if isinstance(made, str):
                corrupt.append(made)
                continue
            languages.update(made.record["captions"].keys())
            styles[(made.record["style"], made.record["licence"])] += 1
            yield made

    partial = path.with_suffix(".partial")
    try:
        count = write_shard(usable(), partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return {
        "samples": count,
        "corrupt": corrupt,
        "languages": languages,
        "styles": [[style, licence, times] for (style, licence), times in sorted(styles.items())],
    }


def _in_order(pool: ThreadPoolExecutor, rows: Sequence[Row], options: AssembleOptions) -> Iterator[Sample | str]:
    """Yield the sample of each row, or the sentence that says why there is none; a bounded number in memory."""
    coming = iter(rows)
    waiting = deque(pool.submit(sample_of, row, options) for row in islice(coming, 4 * options.workers))
    while waiting:
        future = waiting.popleft()
        for following in islice(coming, 1):
            waiting.append(pool.submit(sample_of, following, options))
        try:
            yield future.result()
        except CorruptData as error:
            yield str(error)


def sample_of(row: Row, options: AssembleOptions) -> Sample:
    """Return the sample of a row; CorruptData says what is wrong with it."""
    if row.problem is not None:
        raise CorruptData(row.problem)
    try:
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(row.read())))
        square = fit_and_pad(image, options.size)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # what Pillow raises on damage
        raise CorruptData(f"{row.where}: the picture cannot be decoded: {error}") from error
    out = io.BytesIO()
    square.save(out, "PNG", compress_level=4)
    return Sample(key=row.key, png=out.getvalue(), record=record_of(row, options))


def record_of(row: Row, options: AssembleOptions) -> dict[str, Any]:
    """Return what is kept of a row. Without an id of its own, pictures with the same caption show the same thing."""
    first = min(row.captions)
    facts = {name: value for name, value in row.facts.items() if name != "split"}
    return {
        "id": row.captions[first],
        "style": options.name,
        "group": options.name,
        "captions": dict(row.captions),
        "tags": {language: list(tags) for language, tags in row.tags.items()},
        "licence": options.licence,
        "source": row.where,
    } | facts


def _finish(
    shards: Sequence[Shard],
    journals: Mapping[str, Mapping[str, Any]],
    options: AssembleOptions,
    unfinished: Path,
    folder: Path,
) -> Path:
    """Write the manifest, drop the journals and move the data set into its place."""
    splits: dict[str, dict[str, Any]] = {"train": {"samples": 0, "files": []}}
    styles: dict[str, dict[str, Any]] = {}
    for shard in shards:
        journal = journals[shard.file]
        part = splits.setdefault(shard.split, {"samples": 0, "files": []})
        if journal["samples"]:
            part["samples"] += journal["samples"]
            part["files"].append(unfinished / shard.file)
        for style, licence, times in journal["styles"]:
            entry = styles.setdefault(style, {"licence": licence, "author": options.author, "samples": 0})
            entry["samples"] += times
    if not splits["train"]["samples"]:
        raise InvalidInput(
            f"{options.name}: no sample is left for training: lower --held-out, or check the split column"
        )
    corrupt = [sentence for journal in journals.values() for sentence in journal["corrupt"]]
    facts = {
        "name": options.name,
        "size": options.size,
        "styles": styles,
        "licences": sorted({licence for journal in journals.values() for _, licence, _ in journal["styles"]}),
        "languages": sorted({language for journal in journals.values() for language in journal["languages"]}),
        "skipped": corrupt,
    }
    write_manifest({split: (part["samples"], part["files"]) for split, part in splits.items()}, facts, unfinished)
    for shard in shards:
        (unfinished / f"{shard.file}.json").unlink()
        if not journals[shard.file]["samples"]:
            (unfinished / shard.file).unlink()
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)
    return folder
