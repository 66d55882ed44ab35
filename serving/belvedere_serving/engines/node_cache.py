"""What this node keeps between runs: engines, timings of kernels, and programs with an environment of their own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path


def cache_root(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the folder that BELVEDERE_CACHE names, or the user's."""
    return Path(environment.get("BELVEDERE_CACHE") or Path.home() / ".cache" / "belvedere")


def tool_folder(name: str, environment: Mapping[str, str] = os.environ) -> Path:
    """Return where a program of its own is looked for: where its variable says, or in the cache."""
    named = environment.get(f"BELVEDERE_{name.upper()}")
    return Path(named) if named else cache_root(environment) / "tools" / name


def is_set_up(folder: Path) -> bool:
    """Whether what is in the folder was set up to its end."""
    return (folder / "ready").is_file()
