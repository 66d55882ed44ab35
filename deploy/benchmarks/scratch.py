"""A folder for temporary files, of a benchmark or of a Ray. It ends with its owner, or, if that was killed, when the next one begins."""

from __future__ import annotations

import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

OWNER = ".owner"
"""Locked by whoever the folder belongs to: the kernel lets go of it however that process ends."""


@contextmanager
def scratch(prefix: str, *, under: str | None = None) -> Iterator[Path]:
    """Give a folder whose name begins so, having removed those like it that belong to nobody any more.

    `under`: where, if not where temporary files go; what is left of its owner may still be writing there when it ends.
    """
    _sweep(prefix, under or tempfile.gettempdir())
    with tempfile.TemporaryDirectory(prefix=prefix, dir=under, ignore_cleanup_errors=True) as folder:
        part = Path(folder, f"{OWNER}.part")
        with part.open("w") as owner:
            fcntl.flock(owner, fcntl.LOCK_EX)
            # Under this name only now, or another that begins could take it for one that belongs to nobody.
            part.rename(part.with_name(OWNER))
            yield Path(folder)


def _sweep(prefix: str, under: str) -> None:
    for owner in Path(under).glob(f"{prefix}*/{OWNER}"):
        # It may be someone else's, in use, or be removed at this moment.
        with suppress(OSError), owner.open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(owner.parent)
