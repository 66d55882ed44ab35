"""Run one command at a time in a slot, a directory that outlives the control plane which started it.

A small shell stays beside the command. It holds a lock on the slot for as long as it lives, writes its own identity
before it starts the command, and the exit status afterwards, so that
- two control planes, or one that was killed and came back, never start the same thing twice;
- an exit is observed even when nobody was there to wait for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import json
import os
import shutil
import signal
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from belvedere_operators.executors.identity import (
    PROCESS_VARIABLE,
    Identity,
    find_members,
    snapshot,
    wait_gone,
)
from belvedere_platform.errors import CorruptData, InvalidInput, Unavailable

LOG_LIMIT_BYTES = 16 * 2**20

# Standard input is the lock and standard output the pipe on which the starter waits. The command gets neither.
# `wait` returns early when a trapped signal arrives, hence the loop: only a child that is gone ends it.
SUPERVISOR = r"""
slot=$1; directory=$2; shift 2
cd "$directory" || exit 111
stat=$(cat /proc/$$/stat) || exit 111
set -f; rest=${stat##*) }
start=$(set -- $rest; shift 19; echo "$1")
{ printf '%s %s\n' "$$" "$start" > "$slot/identity.part" && mv "$slot/identity.part" "$slot/identity"; } || exit 111
set +f
trap : HUP INT TERM
echo started; exec 1>&2
"$@" </dev/null &
child=$!
exec >/dev/null 2>&1
while :; do
  wait "$child"; status=$?
  kill -0 "$child" 2>/dev/null || break
done
printf '%s\n' "$status" > "$slot/exit.part" && mv "$slot/exit.part" "$slot/exit"
exit "$status"
"""


@dataclass(frozen=True, kw_only=True)
class Command:
    """What to run. `fingerprint` says whether a running command is the one that is wanted; `owner` is an object's uid."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    directory: Path
    log: Path
    fingerprint: str = ""
    owner: str = ""
    failures: int = 0
    """How many attempts in a row ended too soon; kept here so that the backoff survives the control plane."""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """What was asked of a slot when it was last started."""

    number: int
    started_at: float
    fingerprint: str
    owner: str
    failures: int
    log: str


@dataclass(frozen=True, kw_only=True)
class Empty:
    """Nothing was started here."""


@dataclass(frozen=True, kw_only=True)
class Running:
    """The command runs."""

    identity: Identity
    attempt: Attempt


@dataclass(frozen=True, kw_only=True)
class Exited:
    """The command ended. `code` is None when its supervisor was killed too, so that nobody knows."""

    code: int | None
    attempt: Attempt
    ended_at: float


Observation = Empty | Running | Exited


class Slot:
    """A place for one process. Every method may be called from any number of control planes at once."""

    def __init__(self, directory: Path, *, instance: str) -> None:
        self.directory = directory
        self.mark = f"{instance}:{directory.name}"

    def observe(self) -> Observation:
        """Return what runs here, or how it ended."""
        attempt = self.attempt()
        if attempt is None:
            return Empty()
        for _ in range(2):
            with self._locked(fcntl.LOCK_SH) as lock:
                if lock is not None:
                    return self._ended(attempt)
                identity = self._identity()
            if identity is not None and identity.alive():
                return Running(identity=identity, attempt=attempt)
            # It may have ended between the two looks; then the lock is free by now.
        raise Unavailable(f"{self.directory.name} is just starting or ending: look again")

    def start(self, command: Command, *, now: float) -> Observation:
        """Start the command unless something runs here already, and return what runs. Blocks for milliseconds."""
        self.directory.mkdir(parents=True, exist_ok=True)
        with self._locked(fcntl.LOCK_EX) as lock:
            if lock is None:
                return self.observe()
            before = self.attempt()
            for name in ("identity", "exit"):
                (self.directory / name).unlink(missing_ok=True)
            number = 1 + (before.number if before and before.owner == command.owner else 0)
            attempt = Attempt(
                number=number,
                started_at=now,
                fingerprint=command.fingerprint,
                owner=command.owner,
                failures=command.failures,
                log=str(command.log),
            )
            write_atomically(self.directory / "attempt", json.dumps(asdict(attempt)).encode())
            self._spawn(command, lock)
        return self.observe()

    async def stop(self, *, grace_seconds: float) -> None:
        """End the command and all it started. As in a container the command alone gets SIGTERM, for it knows in which
        order to end its own (Ray's parts wait for each other when all are told at once); what is left is killed."""
        leader = await self._leader()
        members = await asyncio.to_thread(find_members, self.mark, leader)
        if leader is not None:
            while not signal_children(leader, signal.SIGTERM) and leader.alive():  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.01)  # the supervisor is about to start it
            await wait_gone(leader, grace_seconds)
        await self.sweep(leader, members)

    async def sweep(self, leader: Identity | None = None, known: set[Identity] | None = None) -> None:
        """Kill whatever still belongs to this slot. The supervisor goes last, so that it can write the exit status."""
        for _ in range(20):
            found = await asyncio.to_thread(find_members, self.mark, leader)
            left = {member for member in found | (known or set()) if member.alive()}
            if not left:
                return
            targets = left - {leader} if leader is not None and len(left) > 1 else left
            for member in targets:
                member.send(signal.SIGKILL)
            async with asyncio.TaskGroup() as group:
                for member in left:
                    group.create_task(wait_gone(member, 1.0))
        raise Unavailable(f"processes of {self.directory.name} do not end after SIGKILL: {sorted(m.pid for m in left)}")

    def send(self, number: signal.Signals) -> bool:
        """Send a signal to the command itself, not to what it started; False when nothing runs."""
        observation = self.observe()
        if not isinstance(observation, Running):
            return False
        return signal_children(observation.identity, number)

    def forget(self) -> None:
        """Remove the record. Only for a slot where nothing runs."""
        shutil.rmtree(self.directory, ignore_errors=True)

    async def _leader(self) -> Identity | None:
        for _ in range(50):
            try:
                observation = self.observe()
            except Unavailable:
                await asyncio.sleep(0.02)
                continue
            return observation.identity if isinstance(observation, Running) else None
        return self._identity()

    @contextlib.contextmanager
    def _locked(self, operation: int) -> Iterator[int | None]:
        """Give the slot's lock, or None when a supervisor (or another starter) holds it. Observers share it."""
        descriptor = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
            except BlockingIOError:
                yield None
            else:
                yield descriptor
        finally:
            os.close(descriptor)

    def _spawn(self, command: Command, lock: int) -> None:
        program, places = find_program(command), (str(self.directory), str(command.directory))
        words = ("supervisor", *places, program, *command.arguments[1:])
        log = open_log(command.log)
        reader, writer = os.pipe()
        try:
            os.posix_spawn(
                "/bin/sh",
                ["sh", "-c", SUPERVISOR, *words],
                {**command.environment, PROCESS_VARIABLE: self.mark},
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, ours, theirs) for ours, theirs in ((lock, 0), (writer, 1), (log, 2))
                ],
                setsid=True,
                setsigmask=(),
                setsigdef=(signal.SIGPIPE, signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGQUIT),
            )
        except BaseException:
            os.close(reader)
            raise
        finally:
            os.close(log)
            os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            said = pipe.read(16)  # ends when the supervisor has started the command, or is dead
        if not said:
            raise Unavailable(
                f"{command.arguments[0]} could not be started in {command.directory}: {read_tail(command.log, 1)}"
            )

    def attempt(self) -> Attempt | None:
        """Return what was last asked of the slot."""
        fields = read_json(self.directory / "attempt")
        return Attempt(**fields) if fields is not None else None

    def _identity(self) -> Identity | None:
        try:
            pid, start_ticks = (self.directory / "identity").read_text().split()
        except FileNotFoundError:
            return None
        return Identity(pid=int(pid), start_ticks=int(start_ticks))

    def _ended(self, attempt: Attempt) -> Observation:
        try:
            path = self.directory / "exit"
            return Exited(code=int(path.read_text()), attempt=attempt, ended_at=path.stat().st_mtime)
        except FileNotFoundError:
            if not (self.directory / "identity").exists():
                return Empty()  # the control plane died before it spawned anything
            return Exited(code=None, attempt=attempt, ended_at=attempt.started_at)


def signal_children(supervisor: Identity, number: signal.Signals) -> bool:
    """Send a signal to what a supervisor has started itself; False when there is nothing."""
    return any([entry.identity.send(number) for entry in snapshot().values() if entry.parent == supervisor.pid])


def find_program(command: Command) -> str:
    """Return the full path of the program. Raises InvalidInput."""
    path = command.environment.get("PATH", os.defpath)
    found = shutil.which(command.arguments[0], path=path)
    if found is None:
        raise InvalidInput(
            f"command[0] is {command.arguments[0]!r}, which is not on the PATH {path!r}: "
            "install it (`belvedere doctor` says how) or give its full path"
        )
    return found


def open_log(path: Path) -> int:
    """Return a descriptor that appends to a log, after turning over one that has grown large."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size > LOG_LIMIT_BYTES:
        path.replace(older_log(path))
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def older_log(path: Path) -> Path:
    """Return where the older part of a log is after it was turned over."""
    return path.with_suffix(".1.log")


def write_atomically(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Write a file whole or not at all. Raises CorruptData when the disk is full."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CorruptData(
                f"no space is left for {path}: free some, or choose another directory with --home"
            ) from error
        raise


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the object in a JSON file, None when there is no file."""
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    return content


def read_tail(path: Path, num_lines: int) -> str:
    """Return the last lines of a log that are not blank, without reading all of it."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 8192))
            lines = file.read().decode(errors="replace").splitlines()
    except FileNotFoundError:
        return ""
    return "\n".join([line for line in lines if line.strip()][-num_lines:])
