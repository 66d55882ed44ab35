"""Object stores: a write that is broken off publishes nothing, and what is small goes in one request."""

from __future__ import annotations

import io
import json
import time
import uuid
from typing import Any

import fsspec
import pytest
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from belvedere_platform.artifacts import storage as module
from belvedere_platform.artifacts.storage import RemoteStorage


class Upload(AbstractBufferedFile):  # type: ignore[misc]
    """A file of an object store, which is there when its upload ends."""

    DEFAULT_BLOCK_SIZE = 8

    def _upload_chunk(self, final: bool = False) -> bool:
        if final:
            self.fs.published[self.path] = bytes(self.buffer.getvalue())
        return False  # so that all of it is kept until then

    def _initiate_upload(self) -> None:
        """Begin nothing: all is in memory."""


class ObjectStore(AbstractFileSystem):  # type: ignore[misc]
    """As fsspec's for S3 are: a file is published by its `close`."""

    protocol = "objects"
    cachable = False

    def __init__(self) -> None:
        super().__init__()
        self.published: dict[str, bytes] = {}

    def _open(self, path: str, mode: str = "rb", block_size: int | None = None, **options: Any) -> Any:
        return Upload(self, path, mode, block_size=8, **options)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Need no folders."""

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        """Publish in one request."""
        self.published[path] = value


class BrokenOff(io.BytesIO):
    """A source that gives a piece, and then somebody presses Ctrl-C."""

    def read(self, size: int | None = -1) -> bytes:
        if self.tell() >= 8:
            raise KeyboardInterrupt
        return super().read(size)


@pytest.fixture(params=["objects", "memory"])
def store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> RemoteStorage:
    files = ObjectStore() if request.param == "objects" else fsspec.filesystem("memory", skip_instance_cache=True)
    monkeypatch.setattr(fsspec.core, "url_to_fs", lambda url: (files, "bucket"))
    monkeypatch.setattr(module, "ONE_REQUEST_BYTES", 8)
    monkeypatch.setattr(module, "CHUNK", 4)
    return RemoteStorage("objects://bucket", clock=time.time, sleep=time.sleep)


def content_of(store: RemoteStorage, path: str) -> bytes | None:
    files: Any = store._fs
    if isinstance(files, ObjectStore):
        return files.published.get(f"bucket/{path}")
    return files.cat_file(f"bucket/{path}") if files.exists(f"bucket/{path}") else None


@pytest.mark.parametrize("content", [b"", b"small", b"exactly8", b"larger than one request"])
def test_what_is_written_is_there_whole(store: RemoteStorage, content: bytes) -> None:
    assert store.write("a", io.BytesIO(content)) == module.copy_hashing(io.BytesIO(content), None)
    assert content_of(store, "a") == content


def test_a_write_that_is_broken_off_publishes_nothing(store: RemoteStorage) -> None:
    with pytest.raises(KeyboardInterrupt):
        store.write("b", BrokenOff(b"larger than one request"))
    assert content_of(store, "b") is None


def test_of_two_who_find_one_expired_lock_one_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both see it, one removes it and takes its place, and then the other removes that."""
    files = fsspec.filesystem("memory", skip_instance_cache=True)
    monkeypatch.setattr(fsspec.core, "url_to_fs", lambda url: (files, f"/{uuid.uuid4().hex}"))
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 1:
            # While the first waits, the other does what it had begun.
            files.pipe_file(where, json.dumps({"owner": "other", "expires": now + 60}).encode())
        elif len(waits) == 2:
            files.rm_file(where)  # and is through

    now = 1000.0
    first = RemoteStorage("memory://bucket", clock=lambda: now, sleep=sleep)
    where = first._at("index.lock")
    files.pipe_file(where, json.dumps({"owner": "killed", "expires": now - 1}).encode())
    with first.lock("index"):
        assert len(waits) == 3, "it waited until the other was through, and then once more"
    assert not files.exists(where)
