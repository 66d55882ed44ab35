"""The index of a store: read, and written under its lock, for all threads that wait for it at once."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterable

from belvedere_platform.artifacts.errors import BlobsCollected
from belvedere_platform.artifacts.layout import LAYOUT_VERSION, Index, IndexEntry, blob_name, canonical
from belvedere_platform.artifacts.storage import Held, Storage


class StoredIndex:
    """`index.json` of a storage."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._last_read = (b"", Index())
        self._unwritten: list[tuple[IndexEntry, frozenset[str]]] = []
        self._joining = threading.Lock()

    def add(self, entry: IndexEntry, blobs: frozenset[str]) -> None:
        """Name a manifest that needs these blobs. Raises BlobsCollected where a collection has taken one."""
        with self._joining:
            self._unwritten.append((entry, blobs))
        with self._storage.lock("index") as held:
            self._write_joined(entry, held)

    def _write_joined(self, own: IndexEntry, held: Held) -> None:
        """Write the index once for all threads of this process that wait for it: each write is of all that it has."""
        with self._joining:
            waiting, self._unwritten = self._unwritten, []
        if not any(entry is own for entry, _ in waiting):
            # Another thread has written it with its own.
            self._unwritten_again(waiting)
            return
        try:
            # Garbage is collected under this lock, so that what is there now is there when the index names it.
            names = {blob_name(blob) for _, blobs in waiting for blob in blobs}
            missing = self._storage.missing("blobs/sha256", names)
            index, left = self.read(), []
            for entry, blobs in waiting:
                if missing.isdisjoint(map(blob_name, blobs)):
                    index = index.add(entry)
                elif entry is own:
                    raise BlobsCollected(self._storage.url, own.digest)
                else:
                    left.append((entry, blobs))
            self.write(index, held)
        except BaseException:
            self._unwritten_again(one for one in waiting if one[0] is not own)
            raise
        self._unwritten_again(left)

    def _unwritten_again(self, waiting: Iterable[tuple[IndexEntry, frozenset[str]]]) -> None:
        """Leave entries to the threads that brought them: each of them waits for the lock still."""
        with self._joining:
            self._unwritten[:0] = waiting

    def read(self) -> Index:
        """Return the index as it is now."""
        try:
            with self._storage.open("index.json") as stored:
                content = stored.read()
        except FileNotFoundError:
            return Index()
        # Reading it is quick; making sense of thousands of entries is not, and most reads find what the last one found.
        before, index = self._last_read
        if content != before:
            index = Index.parse(content)
            self._last_read = (content, index)
        return index

    def write(self, index: Index, held: Held) -> None:
        """Replace the index, under its lock."""
        held()
        if self._storage.size("oci-layout") is None:
            self._storage.write("oci-layout", io.BytesIO(canonical({"imageLayoutVersion": LAYOUT_VERSION})))
        content = index.document()
        self._storage.write("index.json", io.BytesIO(content))
        # What is read next is most likely this, and need not be parsed. Whatever else is there is told by its bytes.
        self._last_read = (content, index)
