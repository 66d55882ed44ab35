"""The source model: torch programs from a model artifact, and the held-out inputs that engines are compared on."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from belvedere_platform.errors import CorruptData
from belvedere_platform.protocol import EMBED_IMAGE, EMBED_TEXT, EMBEDDING, V2Error
from belvedere_serving.engines.lengths import Lengths
from belvedere_serving.engines.loading import LoadedRuntime
from belvedere_serving.engines.preprocess import ImagePreprocessor, Recipe, TextPreprocessor
from belvedere_serving.engines.runtime import TOWER_INPUT
from belvedere_serving.engines.torch_engine import TorchEngine

PROGRAMS = {EMBED_TEXT: "embed_text.pt2", EMBED_IMAGE: "embed_image.pt2"}


@dataclass(frozen=True)
class HeldOut:
    """Inputs of one tower, row by row, with the ids that pair texts and pictures, and the lengths that texts are served in."""

    ids: tuple[str, ...]
    array: npt.NDArray[Any]
    lengths: Lengths | None = None

    def take(self, rows: Iterable[int]) -> HeldOut:
        """Return some of the rows."""
        chosen = list(rows)
        lengths = None if self.lengths is None else self.lengths[chosen]
        return HeldOut(tuple(self.ids[row] for row in chosen), self.array[chosen], lengths)

    def as_served_by(self, runtime: LoadedRuntime, tower: str) -> HeldOut:
        """Return the same inputs in the lengths that a runtime is given them in."""
        return self if runtime.flexible(tower) else HeldOut(self.ids, self.array)


class TorchRuntime(TorchEngine):
    """Runs the programs in a model artifact."""

    def __init__(self, folder: Path) -> None:
        super().__init__({name: folder / file for name, file in PROGRAMS.items()})


def check_source(folder: Path, reference: str) -> None:
    """Raise CorruptData when a model artifact lacks a file that engines are built from."""
    needed = [*PROGRAMS.values(), "tokenizer.json", "preprocess.json", "parity.jsonl"]
    missing = [name for name in needed if not (folder / name).is_file()]
    if missing:
        raise CorruptData(f"model {reference} lacks {', '.join(missing)}; publish it again with `belvedere train`")


def read_held_out(folder: Path) -> dict[str, HeldOut]:
    """Return the inputs in parity.jsonl, preprocessed as a server would, by tower."""
    recipe = Recipe.read(folder / "preprocess.json")
    texts: list[tuple[str, bytes]] = []
    images: list[tuple[str, bytes]] = []
    for number, line in enumerate((folder / "parity.jsonl").read_text(encoding="utf-8").splitlines(), 1):
        try:
            entry = json.loads(line)
            if "text" in entry:
                texts.append((str(entry["id"]), entry["text"].encode()))
            if "image" in entry:
                images.append((str(entry["id"]), base64.b64decode(entry["image"], validate=True)))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CorruptData(f"parity.jsonl line {number} is not a held-out input: {error}") from error
    if not texts or not images:
        raise CorruptData(f"parity.jsonl has {len(texts)} texts and {len(images)} pictures; it needs some of both")
    text = TextPreprocessor((folder / "tokenizer.json").read_text(encoding="utf-8"), recipe.text)
    image = ImagePreprocessor(recipe.image)
    try:
        tokens = text([value for _, value in texts])
        return {
            EMBED_TEXT: HeldOut(tuple(key for key, _ in texts), tokens, text.lengths(tokens)),
            EMBED_IMAGE: HeldOut(tuple(key for key, _ in images), image([value for _, value in images])),
        }
    except V2Error as error:
        raise CorruptData(f"parity.jsonl: {error}") from error


def answerable(runtime: TorchRuntime, tower: str, held_out: HeldOut) -> tuple[HeldOut, npt.NDArray[np.float32]]:
    """Return the inputs that the source model itself can answer, and its answers.

    What the source cannot answer says nothing about the engine, so it is left out and counted by the caller.
    """
    name = TOWER_INPUT[tower]
    try:
        return held_out, runtime.run(tower, {name: held_out.array})[EMBEDDING]
    except Exception as first:
        answers = {}
        for row in range(len(held_out.ids)):
            try:
                answers[row] = runtime.run(tower, {name: held_out.array[row : row + 1]})[EMBEDDING][0]
            except (RuntimeError, IndexError):
                continue
        if not answers:
            raise CorruptData(f"the source model answers none of its held-out inputs of {tower}: {first}") from first
        return held_out.take(answers), np.stack(list(answers.values()))
