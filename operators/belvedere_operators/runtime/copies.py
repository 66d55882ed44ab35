"""The objects of one kind as last seen, found by key, namespace or one of Belvedere's own labels without looking at all of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping

from belvedere_operators.runtime.queue import Key
from belvedere_operators.runtime.sharing import shared
from belvedere_platform.store import Manifest

INDEXED_PREFIX = "belvedere.dev/"
_NAMESPACE = "namespace"
Entry = tuple[str, str]
Names = Callable[[Manifest], Iterable[str | None]]


def key_of(manifest: Manifest) -> Key:
    """Return the key of an object."""
    metadata = manifest["metadata"]
    return Key(metadata.get("namespace", ""), metadata["name"])


def version_of(manifest: Manifest) -> int:
    """Return an object's resource version. Those of one kind in one store grow with every change."""
    return int(manifest["metadata"].get("resourceVersion", 0))


class Copies:
    """Never goes back in time: of two versions of an object the newer one stays, in whatever order they come.

    What objects have in common is there once, so none may be changed.
    """

    def __init__(self) -> None:
        self._objects: dict[Key, Manifest] = {}
        self._index: dict[Entry, set[Key]] = defaultdict(set)
        self._names: dict[str, Names] = {}
        self._last: Manifest | None = None

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._objects)

    def get(self, key: Key) -> Manifest | None:
        """Return an object or None."""
        return self._objects.get(key)

    def all(self) -> list[Manifest]:
        """Return every object, in no order."""
        return list(self._objects.values())

    def select(self, namespace: str | None, labels: Mapping[str, str]) -> list[Manifest]:
        """Return the objects of a namespace that carry the labels, in the order of their names."""
        asked = [(name, value) for name, value in labels.items() if name.startswith(INDEXED_PREFIX)]
        if namespace is not None:
            asked.append((_NAMESPACE, namespace))
        keys: Collection[Key] = self._objects
        if asked:
            keys = min((self._index.get(one, frozenset()) for one in asked), key=len)
        return [
            self._objects[key]
            for key in sorted(keys)
            if (namespace is None or key.namespace == namespace) and _carries(self._objects[key], labels)
        ]

    def index(self, name: str, names: Names) -> None:
        """From now on find objects by the names that they give of others, without looking at all of them."""
        self._names[name] = names
        for key, manifest in self._objects.items():
            for entry in self._entries(manifest):
                self._index[entry].add(key)

    def naming(self, index: str, namespace: str, name: str) -> list[Key]:
        """Return the keys of the objects of a namespace that give a name, in order."""
        return sorted(key for key in self._index.get((index, name), ()) if key.namespace == namespace)

    def put(self, manifest: Manifest) -> None:
        """Keep this version of an object, unless a newer one is known."""
        key = key_of(manifest)
        before = self._objects.get(key)
        if before is not None:
            if version_of(before) >= version_of(manifest):
                return
            self._forget(key, before)
        # The one before is most like it; else any other of the kind is, as all come from the same few builders.
        self._objects[key] = self._last = shared(manifest, self._last if before is None else before)
        for entry in self._entries(manifest):
            self._index[entry].add(key)

    def drop(self, manifest: Manifest) -> None:
        """Forget an object that was deleted, unless it has been made again since."""
        key = key_of(manifest)
        before = self._objects.get(key)
        if before is not None and version_of(before) <= version_of(manifest):
            self._forget(key, before)

    def replace(self, manifests: Iterable[Manifest], namespace: str | None, version: str) -> list[Manifest]:
        """Keep these as all that a namespace has at a version, and return what vanished. What was learned since stays."""
        found = {key_of(manifest): manifest for manifest in manifests}
        vanished = [
            one
            for key, one in self._objects.items()
            if namespace in (None, key.namespace) and key not in found and version_of(one) <= int(version)
        ]
        for one in vanished:
            self._forget(key_of(one), one)
        for manifest in found.values():
            self.put(manifest)
        return vanished

    def _forget(self, key: Key, manifest: Manifest) -> None:
        del self._objects[key]
        for entry in self._entries(manifest):
            keys = self._index[entry]
            keys.discard(key)
            if not keys:
                del self._index[entry]

    def _entries(self, manifest: Manifest) -> set[Entry]:
        given = {(index, name) for index, names in self._names.items() for name in names(manifest) if name is not None}
        return given.union(_entries(manifest))


def _carries(manifest: Manifest, labels: Mapping[str, str]) -> bool:
    carried = manifest["metadata"].get("labels") or {}
    return all(carried.get(name) == value for name, value in labels.items())


def _entries(manifest: Manifest) -> list[Entry]:
    metadata = manifest["metadata"]
    labels = (metadata.get("labels") or {}).items()
    return [
        (_NAMESPACE, metadata.get("namespace", "")),
        *((name, value) for name, value in labels if name.startswith(INDEXED_PREFIX)),
    ]
