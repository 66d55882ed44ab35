"""Figures in the one form of every Belvedere benchmark file, and as a table."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

Row = dict[str, Any]


def result(name: str, value: float | None, unit: str, better: str, target: float | None, **extra: Any) -> Row:
    """Return one row; `met` follows from the value and the target."""
    met = None if value is None or target is None else (value >= target if better == "higher" else value <= target)
    row = {"name": name, "value": value, "unit": unit, "better": better, "target": target, "met": met, "note": ""}
    return row | extra


def cpu_field(name: str) -> str:
    """Return a field of the first processor as the kernel names it; empty where it does not."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")


def earlier_rows(path: Path) -> list[Row]:
    """Return the rows of a file that an earlier run wrote, each with the commit that it was measured at; none without a file."""
    if not path.exists():
        return []
    document = json.loads(path.read_text())
    return [{"commit": document["commit"], **row} for row in document["results"]]


def write_benchmark(path: Path, results: list[Row], *, seconds: float, packages: Iterable[str]) -> None:
    """Write the file and print it as a table."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    document = {
        "machine": {
            "cpu": cpu_field("model name") or platform.processor(),
            "cores": os.cpu_count(),
            "memory_gib": round(memory),
            "gpu": None,
        },
        "versions": {name: _version(name) for name in packages},
        "commit": subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip(),
        "seconds": seconds,
        "results": results,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n")
    Console().print(_table(results))


def _table(results: list[Row]) -> Table:
    table = Table("result", "value", "unit", "target", "met", "note")
    for row in results:
        table.add_row(
            row["name"],
            "-" if row["value"] is None else f"{row['value']:.4g}",
            row["unit"],
            "-" if row["target"] is None else f"{row['target']:g}",
            {True: "yes", False: "NO", None: "-"}[row["met"]],
            row["note"],
        )
    return table


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
