"""What the tests measure on the way: figures that `make bench-cluster` makes rows of. No test fails on one."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Figures:
    """Named values with a word on what they were measured on."""

    values: dict[str, dict[str, object]] = field(default_factory=dict)

    def note(self, name: str, value: float, note: str = "") -> None:
        """Remember a value."""
        self.values[name] = {"value": value, "note": note}

    def write(self, path: Path) -> None:
        """Write them for the benchmark."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.values, indent=1))
