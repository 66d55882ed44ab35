"""The SQLite file of the embedded store: its tables, its two connections, and what its errors mean to a user."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from belvedere_platform.errors import BelvedereError, CorruptData, InvalidInput, Unavailable

SCHEMA_VERSION = 1
BUSY_SECONDS = 15.0

# The log holds one row a version, so a watcher that knows version v reads what came after it, and nothing else.
SCHEMA = """
CREATE TABLE objects (
  kind TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL,
  uid TEXT NOT NULL UNIQUE, version INTEGER NOT NULL, body TEXT NOT NULL, owned TEXT NOT NULL,
  PRIMARY KEY (kind, namespace, name)
);
CREATE TABLE owners (
  owner_uid TEXT NOT NULL, child_uid TEXT NOT NULL, PRIMARY KEY (owner_uid, child_uid)
) WITHOUT ROWID;
CREATE INDEX owners_by_child ON owners (child_uid);
CREATE TABLE events (
  version INTEGER PRIMARY KEY, kind TEXT NOT NULL, namespace TEXT NOT NULL, type TEXT NOT NULL,
  body TEXT NOT NULL, labels_before TEXT
);
CREATE INDEX events_by_kind ON events (kind, version);
CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO counters VALUES ('version', 1), ('compacted', 1);
"""

T = TypeVar("T")


class Database:
    """One writing and one reading connection, each with a thread of its own, so that no call blocks the event loop."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._writer = _Worker(path)
        self._reader = _Worker(path)
        self._ticker: sqlite3.Connection | None = None

    async def write(self, action: Callable[[sqlite3.Connection], T]) -> T:
        """Run an action that may write."""
        return await self._writer.run(action)

    async def read(self, action: Callable[[sqlite3.Connection], T]) -> T:
        """Run an action that only reads, all of it on one state of the database."""
        return await self._reader.run(lambda connection: _in_snapshot(connection, action))

    def data_version(self) -> int:
        """Return a number that changes when anyone has committed. Takes microseconds: it looks at shared memory only."""
        self._reader.check_open()
        with translated(self.path):
            if self._ticker is None:
                self._ticker = connect_file(self.path)
            return int(self._ticker.execute("PRAGMA data_version").fetchone()[0])

    async def close(self) -> None:
        """Close the connections, after what is under way. Whoever asks from now on is refused."""
        self._writer.refuse()
        self._reader.refuse()
        await self._writer.close()
        await self._reader.close()
        if self._ticker is not None:
            self._ticker.close()
            self._ticker = None


class _Worker:
    """One connection and the one thread that uses it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store")
        self._connection: sqlite3.Connection | None = None
        self._refuses = False
        self._ended = False

    async def run(self, action: Callable[[sqlite3.Connection], T]) -> T:
        self.check_open()
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._act, action)

    def _act(self, action: Callable[[sqlite3.Connection], T]) -> T:
        with translated(self._path):
            if self._connection is None:
                self._connection = connect_file(self._path)
            return action(self._connection)

    def refuse(self) -> None:
        self._refuses = True

    def check_open(self) -> None:
        if self._refuses:
            raise Unavailable(f"the store {self._path} is closed")

    async def close(self) -> None:
        if not self._ended:
            self._ended = True
            await asyncio.get_running_loop().run_in_executor(self._executor, self._close)
            self._executor.shutdown(wait=False)

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def connect_file(path: Path) -> sqlite3.Connection:
    """Open the file, made readable for its owner alone because it holds Secrets, and lay out its tables if it is new."""
    _create(path)
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        _use_write_ahead_log(connection)
        # In WAL mode NORMAL survives a killed process; a power cut may lose the last commits, but never half of one.
        connection.execute("PRAGMA synchronous = NORMAL")
        _lay_out(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def _use_write_ahead_log(connection: sqlite3.Connection) -> None:
    """Switch to WAL mode. The switch needs the file alone and does not wait for it, unlike a write: so this waits."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.005)
        else:
            return


def _create(path: Path) -> None:
    """Make an empty file that only its owner can read, unless there is one.

    It is linked into place, never opened there: closing any descriptor of a file drops every lock that this process
    holds on it, and another process would then remove the log that we still write to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        return
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(descriptor)
    try:
        os.link(name, path)
    except FileExistsError:
        return
    finally:
        os.unlink(name)


def _lay_out(connection: sqlite3.Connection, path: Path) -> None:
    if _schema_version(connection) == SCHEMA_VERSION:
        return
    with transaction(connection):
        found = _schema_version(connection)
        if found == 0:
            for statement in SCHEMA.split(";\n"):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        elif found != SCHEMA_VERSION:
            raise InvalidInput(
                f"the store {path} has schema version {found}; this Belvedere reads version {SCHEMA_VERSION}: "
                "use the Belvedere that wrote it, or another home directory"
            )


def _schema_version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Make everything inside one write: all of it, or, after an error or a killed process, nothing."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # SQLite has rolled back by itself after some errors, a full disk among them.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _in_snapshot(connection: sqlite3.Connection, action: Callable[[sqlite3.Connection], T]) -> T:
    connection.execute("BEGIN")
    try:
        return action(connection)
    finally:
        connection.execute("COMMIT")


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn what SQLite and the file system say into an error that tells a user what to do."""
    try:
        yield
    except sqlite3.Error as error:
        raise _translation(path, error) from error
    except OSError as error:
        raise Unavailable(f"cannot open the store {path}: {error.strerror or error}") from error


def _translation(path: Path, error: sqlite3.Error) -> BelvedereError:
    code = getattr(error, "sqlite_errorname", "") or ""
    if code.startswith("SQLITE_FULL"):
        return CorruptData(
            f"the disk that holds the store {path} is full; nothing was written: free space and try again"
        )
    if code.startswith("SQLITE_IOERR"):
        return CorruptData(
            f"the disk that holds the store {path} failed or is full ({code}); nothing was written: check the disk"
        )
    if code.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return CorruptData(f"{path} is not a whole store file ({error}): restore it or move it away")
    if code.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return Unavailable(f"the store {path} was locked by another process for {BUSY_SECONDS:g} s")
    if code.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM")):
        return Unavailable(f"the store {path} cannot be written ({error}): check its permissions")
    return Unavailable(f"the store {path} failed: {error}")
