"""The easy-VQA set (Victor Zhou, MIT, package easy-vqa): 64-pixel pictures of one shape with questions and one-word answers."""

from __future__ import annotations

import importlib.util
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from belvedere_platform.errors import CorruptData, Unavailable
from belvedere_training.data.rows import Row

LICENCE, AUTHOR = "MIT", "Victor Zhou"
SHAPES = ("circle", "rectangle", "triangle")
_FOLDERS = {"train": "train", "heldout": "test"}


def package_folder() -> Path:
    """Return where the package's data lies; it is not imported, because only its files are needed."""
    spec = importlib.util.find_spec("easy_vqa")
    if spec is None or not spec.submodule_search_locations:
        raise Unavailable("easy-vqa is not installed: pip install 'belvedere[data]'")
    return Path(next(iter(spec.submodule_search_locations))) / "data"


def easy_vqa_rows(folder: Path | None = None) -> list[Row]:
    """Return a row for each picture, its questions among the facts. Its caption is what the answers say of it."""
    folder = folder or package_folder()
    return [row for split, name in _FOLDERS.items() for row in _rows(folder / name, split)]


def _rows(folder: Path, split: str) -> list[Row]:
    path = folder / "questions.json"
    if not path.is_file():
        raise CorruptData(f"{path} is missing: install easy-vqa again")
    questions: dict[int, list[list[str]]] = defaultdict(list)
    for question, answer, picture in json.loads(path.read_text()):
        questions[picture].append([question, answer])
    return [
        Row(
            key=f"{split}_{picture:05d}",
            where=f"easy-vqa {split} picture {picture}",
            file=folder / "images" / f"{picture}.png",
            captions={"en": caption_of(asked)},
            facts={"split": split, "style": "easy-vqa", "group": "shapes", "questions": asked},
        )
        for picture, asked in sorted(questions.items())
    ]


def caption_of(questions: Sequence[Sequence[Any]]) -> str:
    """Return what the questions with a positive answer say: `blue rectangle`, or as much of it as they tell."""
    shape = colour = ""
    for question, answer in questions:
        if answer in SHAPES:
            shape = answer
        elif answer not in ("yes", "no"):
            colour = answer
            shape = next((one for one in SHAPES if one in question), shape)
        elif (answer == "yes") != (" not " in f" {question} " or " no " in f" {question} "):
            shape = next((one for one in SHAPES if one in question), shape)
    return f"{colour} {shape or 'shape'}".strip()
