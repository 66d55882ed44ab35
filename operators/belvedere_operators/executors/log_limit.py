"""Keep the logs of processes within a size while they run: a child holds its log open itself, so the content is moved, not the file.

Every log is opened for appending (`open_log`): after its file was cut, a process goes on at the start.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from belvedere_operators.executors.process import LOG_LIMIT_BYTES, Running, Slot, older_log
from belvedere_operators.runtime import Clock
from belvedere_platform.errors import Unavailable

log = logging.getLogger(__name__)

LOOK_SECONDS = 10.0
_CHUNK = 1 << 20
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


@dataclass(kw_only=True)
class LogLimit:
    """Looks at the logs of the processes below a home again and again."""

    home: Path
    instance: str
    clock: Clock
    limit: int = LOG_LIMIT_BYTES
    name: str = "log limit"

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            await asyncio.to_thread(self._look)
            await self.clock.sleep(LOOK_SECONDS)

    def _look(self) -> None:
        for directory in (self.home / "processes").glob("*"):
            try:
                path = grown_log(Slot(directory, instance=self.instance), self.limit)
                if path is not None and turn_over(path, limit=self.limit):
                    log.info("turned over %s", path)
            except (OSError, Unavailable) as error:
                # The work on objects must not end because of a log; it is tried again at the next look.
                log.warning("the log of %s is not turned over: %s", directory.name, error)


def grown_log(slot: Slot, limit: int) -> Path | None:
    """Return the log of what runs in a slot if it is too large. What has ended writes no more: its last words stay."""
    attempt = slot.attempt()
    if attempt is None:
        return None
    path = Path(attempt.log)
    large = path.is_file() and path.stat().st_size > limit
    return path if large and isinstance(slot.observe(), Running) else None


def turn_over(path: Path, *, limit: int) -> bool:
    """Move the end of a log that is larger than the limit to the older one, cut the log, and return whether it was.

    What a process writes in the instant between the last read and the cut is lost; the processes are not stopped for it.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    with os.fdopen(descriptor, "r+b", buffering=0) as log_file:
        size = os.fstat(descriptor).st_size
        if size <= limit:
            return False
        log_file.seek(size - limit if size > 2 * limit else 0)
        try:
            _keep(log_file, path, limit)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            log.warning("no space is left to keep the older part of %s: it is dropped", path)
        os.ftruncate(descriptor, 0)
    return True


def _keep(log_file: IO[bytes], path: Path, limit: int) -> None:
    part = path.with_suffix(".part")
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as kept:
            _copy(log_file, kept, 2 * limit)
            kept.flush()
            part.replace(older_log(path))
            _copy(log_file, kept, limit)
    finally:
        part.unlink(missing_ok=True)


def _copy(source: IO[bytes], sink: IO[bytes], most: int) -> None:
    """Copy to the end, but no more than so much: a process may write as fast as is read here."""
    while most > 0 and (chunk := source.read(min(most, _CHUNK))):
        sink.write(chunk)
        most -= len(chunk)
