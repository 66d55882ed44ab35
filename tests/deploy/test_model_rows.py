"""docs/model-rows.md has every row of the source documents, and the code, tests, figures and fields that it names exist."""

from __future__ import annotations

import re
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path

import pytest

import training_bench
from ablation_bench import TEACHER
from belvedere_platform.resources.model_service import ModelServiceSpec
from belvedere_training.config import RunConfig
from belvedere_training.model.config import ModelConfig

ROOT = Path(__file__).parents[2]
ROWS = {
    *(f"M{number}" for number in range(1, 27)),
    *(f"L{number}" for number in range(1, 17)),
    *(f"V{number}" for number in range(1, 11)),
    *(f"R{number}" for number in range(1, 13)),
    *(f"P{number}" for number in range(1, 4)),
    *(f"X{number}" for number in range(1, 5)),
    "S6",
}
FIGURES = {name for names, _ in training_bench.GROUPS.values() for name in names}
FIGURES |= {f"{name}_r1_deviation" for name in (TEACHER, "teacher_itself")}
PLACES = (ROOT, ROOT / "training/belvedere_training", ROOT / "tests/training")
MADE = {"build/bench/training.json", "preprocess.json"}


def table() -> list[tuple[str, str, str]]:
    """Return row, code and proof of each line of the tables."""
    lines = (ROOT / "docs/model-rows.md").read_text().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return [(row[0], row[1], row[2]) for row in cells if re.match(r"[A-Z]\d", row[0])]


TABLE = table()


def quoted(text: str) -> list[str]:
    """Return what stands in backticks."""
    return re.findall(r"`([^`]+)`", text)


@cache
def sources() -> str:
    """Return the code that the table may name something of."""
    folders = ("training", "deploy/benchmarks", "platform/belvedere_platform/resources")
    return "\n".join(path.read_text() for folder in folders for path in sorted((ROOT / folder).rglob("*.py")))


@cache
def fields() -> set[str]:
    """Return the names of all fields of a run, of a service and of a model's configuration."""
    found: set[str] = set()
    for model in (RunConfig, ModelServiceSpec, ModelConfig):
        schema = model.model_json_schema()
        for part in (schema, *schema.get("$defs", {}).values()):
            found |= set(part.get("properties", ()))
    return found


def exists(path: str) -> bool:
    """Return whether a file or folder is where the table says that its names start."""
    return any((place / path).exists() for place in PLACES)


def known(name: str) -> bool:
    """Return whether what is named is there: a file, a figure, a target, a command, a field, or something in the code."""
    if name in MADE or name in FIGURES:
        return True
    if name.endswith("*"):
        return any(figure.startswith(name[:-1]) for figure in FIGURES)
    if re.search(r"/|\.(py|yaml|md)$", name):
        return exists(name)
    words = name.split()
    if words[0] == "make":
        return re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE) is not None
    if words[0] == "belvedere":
        return words[1] in entry_points(group="belvedere.commands").names
    first = name.partition(":")[0].partition("(")[0]
    if "." in first:
        return set(first.removeprefix("spec.").split(".")) <= fields()
    return first in fields() or re.search(rf"\b{re.escape(first)}\b", sources()) is not None


def test_every_row_of_the_source_documents_is_there_once() -> None:
    found = [name for row, _, _ in TABLE for name in re.findall(r"\b[MLVRPXS]\d+\b", row)]
    assert set(found) == ROWS
    assert sorted(name for name in found if found.count(name) > 1) == ["R12", "R12"], (
        "R12 has a line for shares of weights"
    )


@pytest.mark.parametrize(("row", "code", "proof"), TABLE, ids=[row for row, _, _ in TABLE])
def test_what_a_row_names_exists(row: str, code: str, proof: str) -> None:
    assert [name for name in quoted(f"{code} {proof}") if not known(name)] == []
    assert any(exists(name) or name.startswith("make ") for name in quoted(code)), "no code is named"
    shown = [name for name in quoted(proof) if name in FIGURES or name.endswith("*") or "test_" in name]
    assert shown, "no test and no figure is named"


def test_a_name_that_is_nowhere_is_found() -> None:
    for name in ("model/nowhere.py", "no_such_figure", "make nothing", "belvedere nothing", "optimization.nothing"):
        assert not known(name), name
