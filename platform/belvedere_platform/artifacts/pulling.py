"""A pull: the files of an artifact in a directory, each checked, and the directory whole or not there."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterable
from pathlib import Path

from belvedere_platform.artifacts.errors import CorruptBlob
from belvedere_platform.artifacts.layout import Descriptor, FileEntry, blob_path, digest_of, parse_manifest
from belvedere_platform.artifacts.storage import (
    Storage,
    copy_hashing,
    file_lock,
    full_disk_is_clear,
    sync_directory,
    write_whole,
)

PULLED_MANIFEST = ".manifest.json"


def is_whole(directory: Path, reference: str) -> bool:
    """Return whether a directory holds every file of the artifact with this digest, by the manifest that was pulled with it."""
    try:
        manifest = (directory / PULLED_MANIFEST).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return False
    if digest_of(manifest) != reference:
        return False
    return all(_has(directory, entry) for entry in parse_manifest(reference, manifest).files)


def pull_into(into: Path, descriptor: Descriptor, manifest: bytes, *, storage: Storage, reference: str) -> Path:
    """Put the files of an artifact into a directory and return it. Raises CorruptBlob."""
    partial = f".{descriptor.digest[7:19]}.partial"
    if not into.exists():
        with file_lock(into.parent / f".{into.name}.pull.lock"):
            if not into.exists():
                staging = into.parent / f".{into.name}{partial}"
                _stage(storage, descriptor.files, staging, reference)
                write_whole(staging / PULLED_MANIFEST, io.BytesIO(manifest), staging=staging / ".incoming")
                shutil.rmtree(staging / ".incoming", ignore_errors=True)
                staging.rename(into)
                sync_directory(into.parent)
                return into
    # The directory may be a mount point, so everything happens inside it from here.
    with file_lock(into / ".pull.lock"):
        missing = [entry for entry in descriptor.files if not _has(into, entry)]
        _stage(storage, missing, into / partial, reference)
        _place(missing, into / partial, into)
        write_whole(into / PULLED_MANIFEST, io.BytesIO(manifest), staging=into / partial)
        shutil.rmtree(into / partial, ignore_errors=True)
    return into


def _stage(storage: Storage, entries: Iterable[FileEntry], staging: Path, reference: str) -> None:
    for entry in entries:
        if not _has(staging, entry):
            _fetch(storage, entry, staging, reference)
    shutil.rmtree(staging / ".incoming", ignore_errors=True)


def _fetch(storage: Storage, entry: FileEntry, staging: Path, reference: str) -> None:
    target = staging / entry.name
    name = f"{entry.name} of {reference}"
    try:
        with storage.open(blob_path(entry.digest)) as stored:
            got = write_whole(target, stored, staging=staging / ".incoming")
    except FileNotFoundError as error:
        raise CorruptBlob(where=storage.url, name=name, expected=entry.digest, got=None) from error
    if got != entry.digest:
        target.unlink()
        raise CorruptBlob(where=storage.url, name=name, expected=entry.digest, got=got)


def _has(directory: Path, entry: FileEntry) -> bool:
    path = directory / entry.name
    try:
        if path.stat().st_size != entry.size:
            return False
        with path.open("rb") as stored:
            return copy_hashing(stored, None) == entry.digest
    except (FileNotFoundError, NotADirectoryError):
        return False


def _place(entries: Iterable[FileEntry], staging: Path, into: Path) -> None:
    for entry in entries:
        target = into / entry.name
        with full_disk_is_clear(str(into), f"placing {entry.name}"):
            target.parent.mkdir(parents=True, exist_ok=True)
        (staging / entry.name).replace(target)
    shutil.rmtree(staging, ignore_errors=True)
    sync_directory(into)
