"""Say which operating system process is meant, without ever going by its name.

A process id alone is not enough: ids are used again. With the kernel's start time of the process (field 22 of
/proc/PID/stat, ticks since boot) it is unique until the machine starts again, and no process outlives that.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
PROCESS_VARIABLE = "BELVEDERE_PROCESS"
INSTANCE_VARIABLE = "BELVEDERE_INSTANCE"


@dataclass(frozen=True, kw_only=True, order=True)
class Identity:
    """One process, for as long as the machine runs."""

    pid: int
    start_ticks: int

    def alive(self) -> bool:
        """Say whether it runs still; a zombie does not, and is reaped when it is ours."""
        entry = read_entry(self.pid)
        if entry is None or entry.identity != self:
            return False
        if entry.state in "ZX":
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.pid, os.WNOHANG)
            return False
        return True

    def send(self, number: signal.Signals) -> bool:
        """Send a signal through a pidfd, so that a pid used again is never hit. False when the process is gone."""
        try:
            descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return False
        try:
            if not self.alive():
                return False
            signal.pidfd_send_signal(descriptor, number)
        except ProcessLookupError:
            return False
        finally:
            os.close(descriptor)
        return True


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What /proc says of one process."""

    identity: Identity
    state: str
    parent: int
    group: int
    session: int


def read_entry(pid: int) -> Entry | None:
    """Return the entry of a process, None when there is none."""
    try:
        text = (PROC / str(pid) / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command name stands in brackets and may hold anything, brackets and blanks too.
    fields = text[text.rindex(")") + 2 :].split()
    identity = Identity(pid=pid, start_ticks=int(fields[19]))
    return Entry(
        identity=identity, state=fields[0], parent=int(fields[1]), group=int(fields[2]), session=int(fields[3])
    )


def identity_of(pid: int) -> Identity | None:
    """Return the identity of a running process."""
    entry = read_entry(pid)
    return entry.identity if entry else None


def read_environment(pid: int, names: Iterable[str]) -> dict[str, str]:
    """Return the named variables of a process's first environment; empty when it cannot be read."""
    try:
        raw = (PROC / str(pid) / "environ").read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return {}
    wanted = set(names)
    pairs = (part.decode(errors="replace").partition("=") for part in raw.split(b"\0") if b"=" in part)
    return {name: value for name, _, value in pairs if name in wanted}


def snapshot() -> dict[int, Entry]:
    """Return every process there is now."""
    entries = (read_entry(int(path.name)) for path in PROC.iterdir() if path.name.isdigit())
    return {entry.identity.pid: entry for entry in entries if entry is not None and entry.state not in "ZX"}


def select_members(
    entries: Mapping[int, Entry], marks: Mapping[int, str | None], *, mark: str, leader: Identity | None
) -> set[Identity]:
    """Return the processes that belong to a mark: those that carry it, the leader's session, and their descendants.

    A descendant that carries another mark belongs to that one. `marks` is each process's BELVEDERE_PROCESS, None
    where it has none or has overwritten its environment (a Ray worker does, to change its title).
    """
    led = leader.pid if leader is not None and _is(entries, leader) else None
    members = {
        pid
        for pid, entry in entries.items()
        if marks.get(pid) == mark
        or (led is not None and marks.get(pid) in (None, mark) and led in (pid, entry.session))
    }
    grew = True
    while grew:
        born = {
            pid
            for pid, entry in entries.items()
            if pid not in members and entry.parent in members and marks.get(pid) in (None, mark)
        }
        members |= born
        grew = bool(born)
    return {entries[pid].identity for pid in members}


def _is(entries: Mapping[int, Entry], identity: Identity) -> bool:
    entry = entries.get(identity.pid)
    return entry is not None and entry.identity == identity


def find_members(mark: str, leader: Identity | None) -> set[Identity]:
    """Return the running processes that belong to a mark."""
    entries = snapshot()
    marks = {pid: read_environment(pid, (PROCESS_VARIABLE,)).get(PROCESS_VARIABLE) for pid in entries}
    return select_members(entries, marks, mark=mark, leader=leader)


def find_instance(instance: str) -> set[Identity]:
    """Return the running processes of an installation, except the caller: those that carry its id, and what they started.

    Some overwrite their environment (a Ray worker does, to change its title): their parent or session tells whose they are.
    """
    entries = snapshot()
    marks = {pid: read_environment(pid, (INSTANCE_VARIABLE,)).get(INSTANCE_VARIABLE) for pid in entries}
    carriers = [entry.identity for pid, entry in entries.items() if marks[pid] == instance]
    found: set[Identity] = set()
    for leader in (None, *carriers):
        found |= select_members(entries, marks, mark=instance, leader=leader)
    return {identity for identity in found if identity.pid != os.getpid()}


async def wait_gone(identity: Identity, timeout_seconds: float | None = None) -> bool:
    """Wait until a process has ended; False when it has not within the time. Works for processes of other parents too."""
    if not identity.alive():
        return True
    try:
        descriptor = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        return True
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(descriptor, ended.set)
    try:
        if not identity.alive():
            return True
        async with asyncio.timeout(timeout_seconds):
            await ended.wait()
    except TimeoutError:
        return not identity.alive()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
    identity.alive()  # reaps it when it was our child
    return True
