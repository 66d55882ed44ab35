"""Print objects: tables for people, JSON and YAML for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return aligned columns, two blanks apart."""
    lines = [list(headings), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def emit(value: Any, output: str) -> None:
    """Print a value as JSON or YAML."""
    if output == "json":
        click.echo(json.dumps(value, indent=2, ensure_ascii=False))
        return
    import yaml

    click.echo(yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=120), nl=False)


def emit_documents(values: Sequence[Any], output: str) -> None:
    """Print several values: as one JSON list, or as YAML documents that can be applied again."""
    if output == "json":
        emit({"apiVersion": "v1", "kind": "List", "items": list(values)}, "json")
        return
    import yaml

    click.echo(yaml.safe_dump_all(values, sort_keys=False, allow_unicode=True, width=120), nl=False)
