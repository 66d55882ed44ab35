"""Build the emoji data set: choose what is held out, render, write shards and a manifest."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from belvedere_platform.errors import InvalidInput
from belvedere_training.data.concepts import (
    Concept,
    Vocabulary,
    held_out_concepts,
    held_out_families,
    read_vocabulary,
)
from belvedere_training.data.manifest import SPLITS, write_dataset
from belvedere_training.data.packages import PACKAGES, Package, Progress
from belvedere_training.data.render import render_all
from belvedere_training.data.shards import Sample, read_shard, write_shard
from belvedere_training.data.styles import STYLES, Drawing, Style, chosen, read_drawings

BUILDER = 1  # raise it when the same options shall give other bytes
NAMES_PACKAGE = "emojibase-data"


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """What to build."""

    styles: tuple[str, ...] = ()
    size: int = 64
    limit_concepts: int | None = None
    held_out: Literal["families", "concepts"] = "families"
    workers: int = 2

    def check(self) -> None:
        """Raise InvalidInput for a value that cannot be built."""
        chosen(self.styles)
        if not 16 <= self.size <= 512:
            raise InvalidInput(f"--size is {self.size}; allowed are 16 to 512 pixels")
        if self.limit_concepts is not None and self.limit_concepts < 20:
            raise InvalidInput(f"--limit-concepts is {self.limit_concepts}; use 20 or more, or leave it out for all")


def needed_packages(options: BuildOptions) -> list[Package]:
    """Return the packages that the chosen styles and the names come from."""
    names = [NAMES_PACKAGE, *(style.package for style in chosen(options.styles))]
    return [PACKAGES[name] for name in dict.fromkeys(names)]


def build_key(options: BuildOptions) -> str:
    """Return a hash of everything that the bytes of the data set depend on."""
    inputs = {
        "builder": BUILDER,
        "options": [sorted(options.styles), options.size, options.limit_concepts],
        "packages": [f"{package.name}@{package.version} {package.sha512}" for package in needed_packages(options)],
        "libraries": {name: importlib.metadata.version(name) for name in ("pillow", "resvg-py")},
    }
    if options.held_out != "families":  # left out otherwise, so that sets built before keep their key
        inputs["heldOut"] = options.held_out
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def build(options: BuildOptions, tarballs: Mapping[str, Path], folder: Path, progress: Progress) -> Path:
    """Write shards and manifest.json into the folder, whole or not at all, and return it."""
    vocabulary = read_vocabulary(tarballs[NAMES_PACKAGE])
    concepts = _limited(vocabulary, options.limit_concepts)
    families, held = _held_out(concepts, options)
    styles = chosen(options.styles)
    drawings = [
        drawing
        for style in styles
        for drawing in read_drawings(style, tarballs[style.package], vocabulary)
        if drawing.concept in concepts
        and split_of(STYLES[drawing.style], concepts[drawing.concept], drawing.concept in held)
    ]
    progress(f"render {len(drawings)} drawings of {len(concepts)} concepts in {len(styles)} styles")
    kept = folder.with_name(f".rendered-{folder.name}")
    samples = _samples(drawings, concepts, held, options, kept, progress)
    write_dataset(samples, _facts(samples, len(concepts), families, styles, options), folder)
    shutil.rmtree(kept, ignore_errors=True)
    return folder


def _held_out(concepts: Mapping[str, Concept], options: BuildOptions) -> tuple[frozenset[str], frozenset[str]]:
    """Return the families that are held out whole, and all concepts that are held out."""
    if options.held_out == "concepts":
        return frozenset(), held_out_concepts(concepts)
    families = held_out_families(concepts.values())
    return families, frozenset(name for name, concept in concepts.items() if concept.family in families)


def split_of(style: Style, concept: Concept, held: bool) -> str | None:
    """Return the split that a drawing belongs to, or None when it is in none. held: whether its concept is held out."""
    if style.role == "train":
        return None if held else "train"
    if style.role == "heldout":
        return "heldout_concepts" if held else "heldout_style"
    # Flags in the line-art style are one blank rectangle each.
    return None if held or concept.group == "flags" else "hard_style"


def _limited(vocabulary: Vocabulary, limit: int | None) -> dict[str, Concept]:
    """Return all concepts, or the `limit` first ones in the order of their hash, so that all groups stay present."""
    ordered = sorted(vocabulary.concepts, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    kept = set(ordered[:limit])
    return {name: concept for name, concept in vocabulary.concepts.items() if name in kept}


def _samples(
    drawings: Sequence[Drawing],
    concepts: Mapping[str, Concept],
    held: frozenset[str],
    options: BuildOptions,
    kept: Path,
    progress: Progress,
) -> dict[str, list[Sample]]:
    """Return the rendered samples by split, each in the order of the hash of its key."""
    splits: dict[str, list[Sample]] = {split: [] for split in SPLITS}
    for number, (drawing, png) in enumerate(_rendered(drawings, options, kept, progress), start=1):
        style, concept = STYLES[drawing.style], concepts[drawing.concept]
        split = split_of(style, concept, concept.id in held)
        assert split is not None
        key = f"{style.name}_{concept.id.lower()}"
        splits[split].append(Sample(key=key, png=png, record=_record(style, concept)))
        if number % 2000 == 0 or number == len(drawings):
            progress(f"drawings {number}/{len(drawings)}")
    splits["hard_style"] = _without_equal_pictures(splits["hard_style"])
    for samples in splits.values():
        samples.sort(key=lambda sample: hashlib.sha256(sample.key.encode()).hexdigest())
    return splits


def _rendered(
    drawings: Sequence[Drawing], options: BuildOptions, kept: Path, progress: Progress
) -> Iterator[tuple[Drawing, bytes]]:
    """Yield the drawings with their pictures, style by style; a style that a broken build finished is not rendered again."""
    kept.mkdir(parents=True, exist_ok=True)
    for style, group in groupby(drawings, key=lambda drawing: drawing.style):
        members, file = list(group), kept / f"{style}.tar"
        if file.is_file():
            progress(f"{style} was rendered before")
        else:
            partial = file.with_suffix(".partial")
            pictures = render_all(members, options.size, options.workers)
            write_shard((Sample(key=drawing.concept, png=png, record={}) for drawing, png in pictures), partial)
            partial.replace(file)
        if members:
            yield from zip(members, (sample.png for sample in read_shard(file)), strict=True)


def _without_equal_pictures(samples: Sequence[Sample]) -> list[Sample]:
    """Drop every picture that another sample shares: a query could not tell them apart."""
    times = Counter(sample.png for sample in samples)
    return [sample for sample in samples if times[sample.png] == 1]


def _record(style: Style, concept: Concept) -> dict[str, Any]:
    package = PACKAGES[style.package]
    return {
        "id": concept.id,
        "style": style.name,
        "group": concept.group,
        "subgroup": concept.subgroup,
        "family": concept.family,
        "captions": dict(concept.captions),
        "tags": {language: list(tags) for language, tags in concept.tags.items()},
        "licence": style.licence,
        "source": f"npm:{package.name}@{package.version}",
    }


def _facts(
    samples: Mapping[str, Sequence[Sample]],
    num_concepts: int,
    held: frozenset[str],
    styles: Sequence[Style],
    options: BuildOptions,
) -> dict[str, Any]:
    """Return what the manifest says beside the shards."""
    counts = Counter(sample.record["style"] for part in samples.values() for sample in part)
    return {
        "name": "emoji",
        "size": options.size,
        "buildKey": build_key(options),
        "styles": {
            style.name: {
                "role": style.role,
                "samples": counts[style.name],
                "licence": style.licence,
                "author": style.author,
                "source": f"npm:{style.package}@{PACKAGES[style.package].version}",
            }
            for style in styles
        },
        "licences": sorted({style.licence for style in styles} | {"Unicode-3.0"}),
        "concepts": num_concepts,
        "heldOutFamilies": sorted(held),
    }
