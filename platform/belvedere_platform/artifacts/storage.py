"""Where the bytes of an artifact store are: a local directory, or anything that fsspec opens.

Both write a file whole or not at all. Locally that is write, fsync, rename; object stores publish an object when its upload ends.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, Protocol

import fsspec
from fsspec.spec import AbstractBufferedFile

from belvedere_platform.artifacts.errors import StorageFull
from belvedere_platform.errors import Unavailable

CHUNK = 1 << 20
ONE_REQUEST_BYTES = 16 << 20
"""What is smaller is sent to an object store in one piece, which nobody can break off: the index above all."""
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
# A writer on an object store that died leaves its lock behind; after this long others take it.
LEASE_SECONDS = 60.0
TAKE_OVER_SECONDS = 1.0
# Without shared locks, garbage collection on an object store must spare what a running push has just uploaded.
REMOTE_GRACE_SECONDS = 3600.0

Held = Callable[[], None]
"""Says that a lock is held still, and renews it when it is time to. Raises Unavailable when it may be another's by now."""


class Storage(Protocol):
    """A tree of files, each replaced whole."""

    url: str

    def open(self, path: str) -> IO[bytes]:
        """Open for reading. Raises FileNotFoundError."""
        ...

    def size(self, path: str) -> int | None:
        """Return the bytes of a file, or None when it is not there."""
        ...

    def write(self, path: str, source: IO[bytes], *, expected: str | None = None) -> str:
        """Write a file whole or not at all, and return the digest of the source. Raises StorageFull.

        A source whose digest is not the one expected is not written: what was there before stays.
        """
        ...

    def delete(self, path: str) -> None:
        """Remove a file if it is there."""
        ...

    def names(self, directory: str) -> list[str]:
        """Return the names of the files in a directory."""
        ...

    def lock(self, name: str) -> contextlib.AbstractContextManager[Held]:
        """Keep all others out of what this lock guards. Long work asks between its steps, and all work before it writes."""
        ...

    def writing(self) -> contextlib.AbstractContextManager[None]:
        """Keep garbage collection away while blobs are being added."""
        ...

    def sweeping(self) -> contextlib.AbstractContextManager[Callable[[str], bool]]:
        """Keep writers away while garbage is collected, and say of a path whether it may be removed."""
        ...

    def fresh(self, path: str) -> bool:
        """Return whether a file is there, and garbage collection spares it until a push that begins now has ended."""
        ...

    def missing(self, directory: str, names: Iterable[str]) -> set[str]:
        """Return which files of a directory garbage collection has taken from a push. None where `writing` keeps it away."""
        ...


def copy_hashing(source: IO[bytes], sink: IO[bytes] | None) -> str:
    """Copy to the sink, if there is one, and return the digest of what was read."""
    hashed = hashlib.sha256()
    while chunk := source.read(CHUNK):
        hashed.update(chunk)
        if sink is not None:
            sink.write(chunk)
    return "sha256:" + hashed.hexdigest()


@contextlib.contextmanager
def full_disk_is_clear(where: str, doing: str) -> Iterator[None]:
    """Turn 'no space left' into an error that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StorageFull(where, doing) from error
        raise


def write_whole(target: Path, source: IO[bytes], *, staging: Path, expected: str | None = None) -> str:
    """Write a local file by way of a staging directory on the same disk: write, fsync, rename. Return the digest.

    With another digest than is expected, if one is, the target stays as it was.
    """
    temporary = staging / f"{os.getpid()}-{uuid.uuid4().hex}"
    with full_disk_is_clear(str(target.parent), f"writing {target.name}"):
        staging.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as sink:
                digest = copy_hashing(source, sink)
                sink.flush()
                os.fsync(sink.fileno())
            if expected not in (None, digest):
                temporary.unlink()
                return digest
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    sync_directory(target.parent)
    return digest


def sync_directory(directory: Path) -> None:
    """Make a rename durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def file_lock(path: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold a lock that the kernel lets go when the process ends, however it ends."""
    with full_disk_is_clear(str(path.parent), "taking a lock"):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


class LocalStorage:
    """A directory, shared by any number of processes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = root.as_uri()
        self._ingest = root / "ingest"

    def open(self, path: str) -> IO[bytes]:
        return (self.root / path).open("rb")

    def size(self, path: str) -> int | None:
        try:
            return (self.root / path).stat().st_size
        except FileNotFoundError:
            return None

    def write(self, path: str, source: IO[bytes], *, expected: str | None = None) -> str:
        return write_whole(self.root / path, source, staging=self._ingest, expected=expected)

    def delete(self, path: str) -> None:
        (self.root / path).unlink(missing_ok=True)

    def names(self, directory: str) -> list[str]:
        try:
            return sorted(entry.name for entry in (self.root / directory).iterdir())
        except FileNotFoundError:
            return []

    @contextlib.contextmanager
    def lock(self, name: str) -> Iterator[Held]:
        with file_lock(self.root / f"{name}.lock"):
            yield lambda: None

    def writing(self) -> contextlib.AbstractContextManager[None]:
        return file_lock(self.root / "writers.lock", shared=True)

    @contextlib.contextmanager
    def sweeping(self) -> Iterator[Callable[[str], bool]]:
        if not self.root.exists():
            yield lambda _: True
            return
        with file_lock(self.root / "writers.lock"):
            yield lambda _: True
            # No writer is alive in here, so whatever is staged was left by one that was killed.
            for name in self.names("ingest"):
                self.delete(f"ingest/{name}")

    def fresh(self, path: str) -> bool:
        return self.size(path) is not None

    def missing(self, directory: str, names: Iterable[str]) -> set[str]:
        return set()


class RemoteStorage:
    """Anything that fsspec opens: s3, gs, memory."""

    def __init__(self, url: str, *, clock: Callable[[], float], sleep: Callable[[float], None]) -> None:
        self._fs, self._root = fsspec.core.url_to_fs(url)
        self.url = url
        self._clock, self._sleep = clock, sleep

    def _at(self, path: str) -> str:
        return f"{self._root.rstrip('/')}/{path}"

    def open(self, path: str) -> IO[bytes]:
        opened: IO[bytes] = self._fs.open(self._at(path), "rb")
        return opened

    def size(self, path: str) -> int | None:
        # Listings are cached by some file systems, and another process may have written since.
        self._fs.invalidate_cache()
        try:
            return int(self._fs.info(self._at(path))["size"])
        except FileNotFoundError:
            return None

    def write(self, path: str, source: IO[bytes], *, expected: str | None = None) -> str:
        where = self._at(path)
        self._fs.makedirs(where.rpartition("/")[0], exist_ok=True)
        with full_disk_is_clear(self.url, f"writing {path}"):
            first = source.read(ONE_REQUEST_BYTES)
            if len(first) < ONE_REQUEST_BYTES:
                digest = "sha256:" + hashlib.sha256(first).hexdigest()
                if expected in (None, digest):
                    self._fs.pipe_file(where, first)
                return digest
            source.seek(-len(first), os.SEEK_CUR)
            return self._upload(where, source, expected)

    def _upload(self, where: str, source: IO[bytes], expected: str | None) -> str:
        sink = self._fs.open(where, "wb")
        try:
            digest = copy_hashing(source, sink)
        except BaseException:
            self._discard(where, sink)
            raise
        if expected in (None, digest):
            sink.close()
        else:
            self._discard(where, sink)
        return digest

    def _discard(self, where: str, sink: Any) -> None:
        # To close it would publish what there is of it.
        if isinstance(sink, AbstractBufferedFile):
            sink.discard()
            sink.closed = True
        else:
            sink.close()
            self._fs.rm_file(where)

    def delete(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self._at(path))

    def names(self, directory: str) -> list[str]:
        self._fs.invalidate_cache()
        try:
            return sorted(name.rpartition("/")[2] for name in self._fs.ls(self._at(directory), detail=False))
        except FileNotFoundError:
            return []

    @contextlib.contextmanager
    def lock(self, name: str) -> Iterator[Held]:
        where, owner = self._at(f"{name}.lock"), uuid.uuid4().hex
        expires = self._acquire(where, owner)

        def held() -> None:
            nonlocal expires
            now = self._clock()
            if now < expires - LEASE_SECONDS * 2 / 3:
                return
            # After it ran out another may be taking it over, even while it still reads as ours.
            if now >= expires or (self._holder(where) or {}).get("owner") != owner:
                raise Unavailable(
                    f"the lock {where} ran out before the work was done; nothing more was written: try again"
                )
            self._fs.pipe_file(where, _lease(owner, now + LEASE_SECONDS))
            expires = now + LEASE_SECONDS

        try:
            yield held
        finally:
            if (self._holder(where) or {}).get("owner") == owner:
                self._fs.rm_file(where)

    def _acquire(self, where: str, owner: str) -> float:
        """Take the lock, and return when it runs out."""
        deadline, delay, taken_over = self._clock() + 2 * LEASE_SECONDS, 0.02, False
        self._fs.makedirs(self._root, exist_ok=True)
        while True:
            expires = self._clock() + LEASE_SECONDS
            with contextlib.suppress(FileExistsError):
                self._fs.pipe_file(where, _lease(owner, expires), mode="create")
                if not taken_over:
                    return expires
                # Another who saw the same expired lock may be about to remove ours: who has it after a while has it.
                self._sleep(TAKE_OVER_SECONDS)
                if (self._holder(where) or {}).get("owner") == owner:
                    return expires
            holder = self._holder(where)
            if holder is not None and holder["expires"] < self._clock():
                with contextlib.suppress(FileNotFoundError):
                    self._fs.rm_file(where)
                taken_over = True
                continue
            if self._clock() > deadline:
                raise Unavailable(
                    f"{where} stayed locked for {2 * LEASE_SECONDS:.0f} s; remove it if no push is running"
                )
            self._sleep(delay)
            delay = min(1.0, delay * 2)

    def _holder(self, where: str) -> dict[str, Any] | None:
        try:
            holder: dict[str, Any] = json.loads(self._fs.cat_file(where))
        except FileNotFoundError:
            return None
        return holder

    def writing(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def sweeping(self) -> Iterator[Callable[[str], bool]]:
        def old_enough(path: str) -> bool:
            age = self._age_seconds(path)
            return age is not None and age > REMOTE_GRACE_SECONDS

        yield old_enough

    def fresh(self, path: str) -> bool:
        age = self._age_seconds(path)
        return age is not None and age < REMOTE_GRACE_SECONDS / 2

    def _age_seconds(self, path: str) -> float | None:
        self._fs.invalidate_cache()
        try:
            return self._clock() - float(self._fs.modified(self._at(path)).timestamp())
        except FileNotFoundError:
            return None

    def missing(self, directory: str, names: Iterable[str]) -> set[str]:
        # One listing asks for less than one request for each file would, and this is asked under the index's lock.
        return set(names) - set(self.names(directory))


def _lease(owner: str, expires: float) -> bytes:
    return json.dumps({"owner": owner, "expires": expires}).encode()


def open_storage(
    url: str, *, clock: Callable[[], float] = time.time, sleep: Callable[[float], None] = time.sleep
) -> Storage:
    """Return the storage behind a URL; a plain path is a local directory."""
    scheme, separator, rest = url.partition("://")
    if separator and scheme not in ("file", "local"):
        return RemoteStorage(url, clock=clock, sleep=sleep)
    return LocalStorage(Path(rest if separator else url).expanduser().absolute())
