"""The table of the chart's values in docs/helm.md, made from the comments in values.yaml: helm_values.py --check | --write."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent.parent
VALUES = ROOT / "helm" / "belvedere" / "values.yaml"
PAGE = ROOT / "docs" / "helm.md"
BEGIN, END = "<!-- values: made by `make helm-values` -->\n", "<!-- end of values -->\n"
_KEY = re.compile(r"(?P<indent> *)(?P<key>[A-Za-z0-9_]+):(?: |$)")


class Undocumented(Exception):
    """A value has no comment, or a comment no value."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One value: where it is, what it is unless set, what it is for."""

    path: tuple[str, ...]
    default: Any
    meaning: str


def rows_of(text: str) -> list[Row]:
    """Return the documented values of a values.yaml, in its order. Raises Undocumented for one that has no comment."""
    values = yaml.safe_load(text)
    rows = [
        Row(path=path, default=_at(values, path), meaning=meaning)
        for path, meaning in _documented(text)
        if meaning is not None
    ]
    covered = {row.path for row in rows}
    for path in _leaves(values):
        if not any(path[:length] in covered for length in range(1, len(path) + 1)):
            raise Undocumented(f"{VALUES.name}: {'.'.join(path)} has no comment; write `# -- what it is for` before it")
    return rows


def table(rows: list[Row]) -> str:
    """Return the rows as a Markdown table."""
    lines = ["| value | default | meaning |", "|---|---|---|"]
    for row in rows:
        default = json.dumps(row.default, ensure_ascii=False)
        lines.append(f"| `{'.'.join(row.path)}` | `{default}` | {row.meaning.replace('|', chr(92) + '|')} |")
    return "\n".join(lines) + "\n"


def with_table(page: str, made: str) -> str:
    """Return the page with the table between its marks."""
    before, found, rest = page.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not found or not ended:
        raise Undocumented(f"{PAGE.name} has no place for the table: it must contain {BEGIN!r} and {END!r}")
    return before + BEGIN + made + END + after


def _documented(text: str) -> Iterator[tuple[tuple[str, ...], str | None]]:
    """Give each key's path with the comment that stands right before it, if there is one."""
    above: list[tuple[int, str]] = []
    meaning: str | None = None
    for line in text.splitlines():
        comment = line.strip()
        if comment.startswith("# -- "):
            meaning = comment.removeprefix("# -- ")
        elif comment.startswith("#"):
            meaning = None
        elif found := _KEY.match(line):
            indent = len(found["indent"])
            above = [(depth, key) for depth, key in above if depth < indent]
            above.append((indent, found["key"]))
            yield tuple(key for _, key in above), meaning
            meaning = None


def _leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if isinstance(value, dict) and value:
        for key, below in value.items():
            yield from _leaves(below, (*path, str(key)))
    else:
        yield path


def _at(value: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def main(arguments: list[str]) -> int:
    """Write the page, or say that it is not as it should be."""
    try:
        page = PAGE.read_text()
        wanted = with_table(page, table(rows_of(VALUES.read_text())))
    except Undocumented as error:
        print(error, file=sys.stderr)
        return 1
    if arguments == ["--write"]:
        PAGE.write_text(wanted)
        return 0
    if page != wanted:
        print("docs/helm.md does not show the chart's values as they are: run  make helm-values", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
