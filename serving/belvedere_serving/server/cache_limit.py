"""Keeps the engines on a node within a limit: those that no process holds go, the longest unused first.

A folder in use is held by a shared lock on itself, which the kernel lets go when the process ends, however it ends.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from belvedere_platform.artifacts.storage import file_lock
from belvedere_platform.errors import InvalidInput

log = logging.getLogger(__name__)

LIMIT_VARIABLE = "BELVEDERE_ENGINE_CACHE_GIB"
DEFAULT_LIMIT_GIB = 20.0
_WHOLE = re.compile(r"[0-9a-f]{64}")
_PARTIAL = re.compile(r"\.(?P<name>[0-9a-f]{64})\..*\.partial")
_REMOVED = ".removed"
_READ_ONLY = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})


@dataclass(frozen=True, kw_only=True)
class _Kept:
    path: Path
    lock: Path
    """What a process that uses or fills the folder has locked."""
    used_at: float
    size: int


def limit_bytes(environment: Mapping[str, str] = os.environ) -> int:
    """Return how much the engines on this node may take. Raises InvalidInput."""
    given = environment.get(LIMIT_VARIABLE) or str(DEFAULT_LIMIT_GIB)
    try:
        gib = float(given)
    except ValueError:
        gib = -1.0
    if not 0 < gib < 2**20:
        raise InvalidInput(
            f"{LIMIT_VARIABLE} is {given!r}: it must be a number of GiB above 0, such as {DEFAULT_LIMIT_GIB}"
        )
    return int(gib * 2**30)


def hold(folder: Path) -> int | None:
    """Keep a folder from being removed until the descriptor is closed, and note its use; None when it is not there."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return None
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    # It may have been removed while we waited for the lock: what we hold is then no longer the folder of that name.
    if not (folder.exists() and os.path.samestat(folder.stat(), os.fstat(descriptor))):
        os.close(descriptor)
        return None
    try:
        os.utime(descriptor)
    except OSError as error:  # A cache that came with the image is for reading: nothing is removed from it either.
        if error.errno not in _READ_ONLY:
            os.close(descriptor)
            raise
    return descriptor


def make_room(cache: Path, *, incoming: str, size: int, limit: int) -> None:
    """Remove engines that nobody holds, the longest unused first, until `size` more bytes fit for the one named `incoming`."""
    with file_lock(cache / ".limit.lock"):
        for left in cache.glob(f".*{_REMOVED}"):
            shutil.rmtree(left)
        kept = sorted(_kept(cache, incoming), key=lambda one: one.used_at)
        over = sum(one.size for one in kept) + size - limit
        removed = []
        for one in kept:
            if over <= 0:
                break
            if _remove(one):
                over -= one.size
                removed.append(f"{one.path.name.strip('.')[:12]} ({one.size / 2**20:.0f} MiB)")
    if removed:
        # Not info: a replica of Ray Serve logs warnings alone.
        log.warning(
            "removed from the cache %s to keep it within %.1f GiB: %s", cache, limit / 2**30, ", ".join(removed)
        )
    if over > 0:
        text = "the engines in use on this node and %s take %.1f GiB more than %s allows"
        log.warning(text, incoming[:12], over / 2**30, LIMIT_VARIABLE)


def _kept(cache: Path, incoming: str) -> Iterator[_Kept]:
    for path in cache.iterdir():
        partial = _PARTIAL.fullmatch(path.name)
        name = partial["name"] if partial else path.name
        if name == incoming or not _WHOLE.fullmatch(name):
            continue
        lock = cache / f".{name}.pull.lock" if partial else path
        try:
            sizes = [entry.lstat().st_size for entry in path.rglob("*") if not entry.is_dir()]
            yield _Kept(path=path, lock=lock, used_at=path.stat().st_mtime, size=sum(sizes))
        except FileNotFoundError:
            continue  # A pull of it is just ending, and what it wrote is in use now.


def _remove(one: _Kept) -> bool:
    with _alone(one.lock) as alone:
        if alone and one.path.exists():
            # Renamed first, so that nothing half removed bears the name of an engine, however this ends.
            gone = one.path.with_name(f".{one.path.name.strip('.')}{_REMOVED}")
            one.path.rename(gone)
            shutil.rmtree(gone)
            return True
    return False


@contextmanager
def _alone(path: Path) -> Iterator[bool]:
    """Whether nobody else holds the path, and nobody will meanwhile."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        yield False
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
    else:
        yield True
    finally:
        os.close(descriptor)
