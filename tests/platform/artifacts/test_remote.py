"""Object stores: a write that is broken off publishes nothing, and what is small goes in one request."""

from __future__ import annotations

import io
import time
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
