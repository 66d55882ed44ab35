"""Belvedere as a process, of this state of the repository or of an older one that `deploy/setup/older.sh` has unpacked."""

from __future__ import annotations

import os
import sys
from pathlib import Path

PACKAGES = ("platform", "operators", "serving", "training")
BELVEDERE = (sys.executable, "-c", "from belvedere_platform.cli.main import main; main()")


def environment_of(tree: Path | None) -> dict[str, str]:
    """Return the environment in which the older state's packages come before this one's. The libraries are the same."""
    if tree is None:
        return dict(os.environ)
    return {**os.environ, "PYTHONPATH": os.pathsep.join(str(tree / package) for package in PACKAGES)}
