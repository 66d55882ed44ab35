"""What of an earlier demo may be cleared before the next one."""

from __future__ import annotations

from pathlib import Path


def is_a_demos(output: Path) -> bool:
    """Return whether a folder is what a demo left behind, so that it may be cleared: its installation, or not even that."""
    return (output / "home" / "installation.json").is_file() or not any((output / "home").iterdir())
