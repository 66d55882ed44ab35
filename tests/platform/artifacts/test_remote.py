"""Object stores: a write that is broken off publishes nothing, and a collection beside a push takes nothing from it."""

from __future__ import annotations

import io
import json
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from belvedere_platform.artifacts import ArtifactStore
from belvedere_platform.artifacts import storage as module
from belvedere_platform.artifacts.index import StoredIndex
from belvedere_platform.artifacts.layout import Index
from belvedere_platform.artifacts.storage import RemoteStorage
from belvedere_platform.errors import InvalidInput, Unavailable


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


HOUR = 3600.0


class Aging:
    """A bucket whose files are as old as the test says, and a clock for those who use it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1e9
        self.files = fsspec.filesystem("memory", skip_instance_cache=True)
        self.files.store, self.files.pseudo_dirs = {}, [""]
        self.root = f"/{uuid.uuid4().hex}"
        self.written: dict[str, float] = {}
        self.before: dict[str, Callable[[], None]] = {}
        """What happens just before a file is written or removed, once."""
        monkeypatch.setattr(fsspec.core, "url_to_fs", lambda url: (self.files, self.root))
        monkeypatch.setattr(self.files, "pipe_file", self._then(self.files.pipe_file, written=True))
        monkeypatch.setattr(self.files, "rm_file", self._then(self.files.rm_file, written=False))
        monkeypatch.setattr(self.files, "modified", self._modified)

    def _then(self, act: Any, *, written: bool) -> Any:
        def acting(path: str, *given: Any, **options: Any) -> None:
            name = path.removeprefix(f"{self.root}/")
            self.before.pop(("write " if written else "remove ") + name, lambda: None)()
            act(path, *given, **options)
            if written:
                self.written[name] = self.now

        return acting

    def _modified(self, path: str) -> datetime:
        if not self.files.exists(path):
            raise FileNotFoundError(path)
        return datetime.fromtimestamp(self.written[path.removeprefix(f"{self.root}/")], UTC)

    def store(self) -> ArtifactStore:
        def sleep(seconds: float) -> None:
            self.now += seconds

        return ArtifactStore("", storage=RemoteStorage("memory://bucket", clock=lambda: self.now, sleep=sleep))


@pytest.fixture
def aging(monkeypatch: pytest.MonkeyPatch) -> Aging:
    return Aging(monkeypatch)


def path_of(content: bytes) -> str:
    return "blobs/sha256/" + module.copy_hashing(io.BytesIO(content), None).removeprefix("sha256:")


def test_a_blob_that_a_push_reuses_outlives_a_collection_before_the_index(aging: Aging) -> None:
    """Nothing refers to the old blob until the index does, and the collection runs just before that."""
    old = aging.store().push("dataset", {"a": b"reused"}, config={"number": 1})
    aging.now += 2 * HOUR

    def collect() -> None:
        aging.store().collect_garbage([])

    aging.before["write index.lock"] = collect
    pushed = aging.store().push("dataset", {"a": b"reused"}, config={"number": 2}, tag="datasets/new")
    assert aging.store().verify("datasets/new").digest == pushed.digest
    assert [one.digest for one in aging.store().list()] == [pushed.digest], f"{old.digest} went"


def test_a_collection_looks_again_before_it_removes(aging: Aging) -> None:
    aging.store().push("dataset", {"a": b"reused"}, config={"number": 1})
    aging.now += 2 * HOUR
    # Decided, and the index is written: now a push comes upon the blob, and goes on after the collection.
    aging.before["write index.json"] = lambda: aging.files.pipe_file(f"{aging.root}/{path_of(b'reused')}", b"reused")
    removed = aging.store().collect_garbage([])
    assert removed.artifacts
    assert aging.files.exists(f"{aging.root}/{path_of(b'reused')}")
    assert removed.blobs
    assert path_of(b"reused").rpartition("/")[2] not in "".join(removed.blobs)


def test_a_push_that_took_longer_than_the_grace_sends_again_what_was_collected(aging: Aging) -> None:
    def collected() -> None:
        aging.now += 2 * HOUR
        aging.store().collect_garbage([])

    aging.before["write index.lock"] = collected
    aging.store().push("dataset", {"a": b"early"}, config={}, tag="datasets/slow")
    assert aging.store().verify("datasets/slow")


def test_a_blob_that_is_sent_again_is_replaced_by_nothing_else(aging: Aging, tmp_path: Path) -> None:
    """The file changes after it was found in the store: what others refer to there stays."""
    (tmp_path / "a").write_bytes(b"reused")
    aging.store().push("dataset", {"a": tmp_path / "a"}, config={}, tag="datasets/first")
    aging.now += 2 * HOUR
    aging_store = aging.store()
    fresh = RemoteStorage.fresh

    def changing(self: RemoteStorage, path: str) -> bool:
        (tmp_path / "a").write_bytes(b"other!")
        return fresh(self, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RemoteStorage, "fresh", changing)
        with pytest.raises(InvalidInput, match="changed while it was being pushed"):
            aging_store.push("dataset", {"a": tmp_path / "a"}, config={"number": 2})
    assert aging.store().verify("datasets/first")


def test_a_lock_is_renewed_while_the_work_lasts(aging: Aging) -> None:
    storage = RemoteStorage("memory://bucket", clock=lambda: aging.now, sleep=lambda _: None)
    with storage.lock("index") as held:
        for _ in range(10):
            aging.now += module.LEASE_SECONDS / 2
            held()
        lease = json.loads(aging.files.cat_file(f"{aging.root}/index.lock"))
        assert lease["expires"] > aging.now
    assert not aging.files.exists(f"{aging.root}/index.lock")


def test_whose_lock_ran_out_writes_no_index(aging: Aging) -> None:
    """It slept: another may have written the index since it read it."""
    store = aging.store()
    store.push("dataset", {"a": b"1"}, config={}, tag="datasets/one")
    before = aging.files.cat_file(f"{aging.root}/index.json")
    read = StoredIndex.read

    def slow(self: StoredIndex) -> Index:
        aging.now += 2 * module.LEASE_SECONDS
        return read(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StoredIndex, "read", slow)
        with pytest.raises(Unavailable, match=r"index.lock ran out"):
            store.untag("datasets/one")
    assert aging.files.cat_file(f"{aging.root}/index.json") == before
