"""ArtifactStore: datasets, models and engines by digest, in an OCI image layout."""

from __future__ import annotations

import builtins
import contextlib
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, TypeVar

from belvedere_platform.artifacts.errors import ArtifactNotFound, BlobsCollected, CorruptBlob
from belvedere_platform.artifacts.garbage import reachable
from belvedere_platform.artifacts.index import StoredIndex
from belvedere_platform.artifacts.layout import (
    ARTIFACT_TYPES,
    CONFIG_ANNOTATION,
    MANIFEST,
    ArtifactKind,
    Descriptor,
    FileEntry,
    Foreign,
    Index,
    IndexEntry,
    blob_path,
    check_name,
    config_document,
    digest_of,
    is_foreign,
    manifest_document,
    media_type_of,
    parse_manifest,
    referred,
    type_of,
)
from belvedere_platform.artifacts.pulling import is_whole, pull_into
from belvedere_platform.artifacts.storage import Held, Storage, copy_hashing, open_storage
from belvedere_platform.errors import InvalidInput, NotFound

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_T = TypeVar("_T")
# What the OCI image layout allows in org.opencontainers.image.ref.name.
_TAG = re.compile(r"[A-Za-z0-9]+([-._:@+]|--)?[A-Za-z0-9]*([-._:@+/]+[A-Za-z0-9]+)*")


@dataclass(frozen=True, kw_only=True)
class Garbage:
    """What a collection removed, or would remove."""

    artifacts: tuple[Descriptor, ...]
    blobs: tuple[str, ...]
    size_bytes: int


class ArtifactStore:
    """Artifacts at a URL. Every write is whole or absent, every read is checked against its digest."""

    def __init__(self, url: str, *, storage: Storage | None = None) -> None:
        self._storage = storage or open_storage(url)
        self._index = StoredIndex(self._storage)

    @property
    def url(self) -> str:
        """Where the store is."""
        return self._storage.url

    def push(
        self,
        kind: ArtifactKind | str,
        files: Mapping[str, Path | bytes],
        *,
        config: Mapping[str, Any],
        annotations: Mapping[str, str] | None = None,
        subject: str | None = None,
        tag: str | None = None,
    ) -> Descriptor:
        """Store files and config as one artifact. The same content gives the same digest, and is stored once."""
        kind = _kind(kind)
        if not files:
            raise InvalidInput(f"a {kind.value} artifact needs at least one file")
        if tag is not None:
            _check_tag(tag)
        with self._storage.writing():
            made_for = self.resolve(subject) if subject is not None else None

            def put() -> Descriptor:
                entries = [self._push_file(kind, name, files[name]) for name in sorted(files)]
                config_blob = config_document(kind, config, entries)
                self._put_blob(io.BytesIO(config_blob), "the config")
                manifest = manifest_document(
                    kind,
                    entries,
                    config=config,
                    config_blob=config_blob,
                    annotations=annotations or {},
                    subject=made_for,
                )
                return parse_manifest(self._put_blob(io.BytesIO(manifest), "the manifest"), manifest)

            descriptor = put()
            try:
                self._index.add(_entry(descriptor, tag), descriptor.blobs)
            except BlobsCollected:
                # It took longer than a collection waits. What is there still is fresh or is sent anew, so once is enough.
                descriptor = put()
                self._index.add(_entry(descriptor, tag), descriptor.blobs)
        return self.resolve(descriptor.digest)

    def _push_file(self, kind: ArtifactKind, name: str, content: Path | bytes) -> FileEntry:
        check_name(name)
        if isinstance(content, bytes):
            source: IO[bytes] = io.BytesIO(content)
            size = len(content)
        else:
            try:
                source = content.open("rb")
            except FileNotFoundError as error:
                raise NotFound(f"file {content}, to be pushed as {name}, does not exist") from error
            size = os.fstat(source.fileno()).st_size
        with source:
            digest = self._put_blob(source, name)
        return FileEntry(name=name, digest=digest, size=size, media_type=media_type_of(kind, name))

    def _put_blob(self, source: IO[bytes], name: str) -> str:
        digest = copy_hashing(source, None)
        path = blob_path(digest)
        # A blob that is there but damaged is replaced: pushing again is how a store is mended. One that a collection might
        # take is written again, which makes it new.
        if self._storage.fresh(path) and self._hash(path) == digest:
            return digest
        source.seek(0)
        if self._storage.write(path, source, expected=digest) != digest:
            raise InvalidInput(f"{name} changed while it was being pushed; push it when nothing writes to it any more")
        return digest

    def _hash(self, path: str) -> str | None:
        try:
            with self._storage.open(path) as stored:
                return copy_hashing(stored, None)
        except FileNotFoundError:
            return None

    def resolve(self, reference: str) -> Descriptor:
        """Return the artifact of a tag or digest. Raises ArtifactNotFound."""
        index = self._index.read()
        digest = reference if _DIGEST.fullmatch(reference) else index.tagged(reference)
        known = index.digests
        if digest is None or digest not in known:
            raise ArtifactNotFound(self._not_found(reference, index))
        return parse_manifest(digest, self._read_blob(digest, f"the manifest of {reference}"), tags=known[digest])

    def _not_found(self, reference: str, index: Index) -> str:
        tags = sorted(entry.tag for entry in index.entries if entry.tag is not None)
        prefix = reference.split("/", maxsplit=1)[0] + "/"
        near = [tag for tag in tags if tag.startswith(prefix)] or tags
        listed = ", ".join(near[:8]) + (", …" if len(near) > 8 else "") if near else "nothing yet"
        return f"no artifact {reference!r} in {self.url}; it has {listed}"

    def config(self, reference: str) -> dict[str, Any]:
        """Return the configuration that the artifact was pushed with, and its `kind`."""
        descriptor = self.resolve(reference)
        if descriptor.kind is ArtifactKind.MODEL:
            stored = descriptor.annotations[CONFIG_ANNOTATION]
        else:
            stored = self._read_blob(descriptor.config_digest, f"the config of {reference}").decode()
        config: dict[str, Any] = json.loads(stored)
        return config

    def read(self, reference: str, name: str) -> bytes:
        """Return one file of an artifact."""
        descriptor = self.resolve(reference)
        for entry in descriptor.files:
            if entry.name == name:
                return self._read_blob(entry.digest, f"{name} of {reference}")
        names = ", ".join(entry.name for entry in descriptor.files[:12])
        raise ArtifactNotFound(f"artifact {reference!r} has no file {name!r}; it has {names}")

    def _read_blob(self, digest: str, name: str) -> bytes:
        try:
            with self._storage.open(blob_path(digest)) as stored:
                content = stored.read()
        except FileNotFoundError as error:
            raise CorruptBlob(where=self.url, name=name, expected=digest, got=None) from error
        if (got := digest_of(content)) != digest:
            raise CorruptBlob(where=self.url, name=name, expected=digest, got=got)
        return content

    def verify(self, reference: str) -> Descriptor:
        """Read every byte of an artifact and return it. Raises ArtifactNotFound or CorruptBlob."""
        descriptor = self.resolve(reference)
        named = [(entry.name, entry.digest) for entry in descriptor.files]
        for name, digest in (*named, ("the config", descriptor.config_digest)):
            got = self._hash(blob_path(digest))
            if got != digest:
                raise CorruptBlob(where=self.url, name=f"{name} of {reference}", expected=digest, got=got)
        return descriptor

    def pull(self, reference: str, into: Path) -> Path:
        """Put the files into a directory and return it. Files that are there and right are kept, so a broken pull goes on.

        A directory that did not exist appears whole or not at all; in one that did, each file is replaced whole.
        What was pulled by its digest before, and is whole, is found so on the spot: nothing is read from the store.
        """
        into = into.absolute()
        if is_whole(into, reference):
            return into
        descriptor = self.resolve(reference)
        manifest = self._read_blob(descriptor.digest, f"the manifest of {reference}")
        return pull_into(into, descriptor, manifest, storage=self._storage, reference=reference)

    def tag(self, reference: str, tag: str) -> Descriptor:
        """Give an artifact one more tag; a tag that named another artifact moves."""
        _check_tag(tag)
        with self._storage.writing():
            descriptor = self.resolve(reference)
            if tag in descriptor.tags:
                return descriptor
            self._index.add(_entry(descriptor, tag), descriptor.blobs)
        return self.resolve(descriptor.digest)

    def untag(self, tag: str) -> None:
        """Take a tag away; the artifact stays until garbage is collected."""
        with self._storage.lock("index") as held:
            index = self._index.read()
            if (digest := index.tagged(tag)) is None:
                raise ArtifactNotFound(self._not_found(tag, index))
            bare = next(entry for entry in index.entries if entry.digest == digest and entry.tag == tag)
            rest = tuple(entry for entry in index.entries if entry is not bare)
            untagged = replace(bare, tag=None)
            self._index.write(Index(entries=(*rest, untagged)).tidied(), held)

    def list(self) -> list[Descriptor]:
        """Return every artifact with its tags, tagged ones first."""
        return self.contents()[0]

    def contents(self) -> tuple[builtins.list[Descriptor], builtins.list[Foreign]]:
        """Return every artifact, and what other tools put here, each with its tags and tagged ones first."""
        ours, others = _parted(self._manifests())
        return (
            sorted(ours, key=lambda one: (not one.tags, one.tags, one.digest)),
            sorted(others, key=lambda one: (not one.tags, one.tags, one.digest)),
        )

    def _manifests(self) -> Iterator[Descriptor | Foreign]:
        index = self._index.read()
        types = {entry.digest: (entry.foreign or {}).get("mediaType", MANIFEST) for entry in index.entries}
        for digest, tags in index.digests.items():
            content = self._read_blob(digest, f"the manifest {digest}")
            document = json.loads(content)
            if not is_foreign(document):
                yield parse_manifest(digest, content, tags=tags)
                continue
            artifact_type = type_of(document, types[digest])
            yield Foreign(
                digest=digest, artifact_type=artifact_type, refers=self._refers(digest), tags=tuple(sorted(tags))
            )

    def _refers(self, digest: str) -> frozenset[str]:
        found, pending = set[str](), {digest}
        while pending:
            found.add(one := pending.pop())
            # An image index may name manifests, and a signature a subject, that nobody has brought here.
            if self._storage.size(blob_path(one)) is not None:
                blobs, manifests = referred(json.loads(self._read_blob(one, f"the manifest {one}")))
                pending |= manifests - found
                found |= blobs
        return frozenset(found)

    def collect_garbage(
        self, keep: Iterable[str], *, among: Iterable[Descriptor] | None = None, dry_run: bool = False
    ) -> Garbage:
        """Remove every artifact that is neither in `keep` (tags or digests) nor the subject of one that is, and unused blobs.

        With `among`, what `list` returned when `keep` was decided, whatever was pushed or tagged since then stays too.
        What other tools put here stays with all that it refers to.
        """
        with self._storage.sweeping() as may_remove, self._index_lock(dry_run) as held:
            ours, others = _parted(_asking(held, self._manifests()))
            known = {one.digest: one for one in ours}
            foreign = {one.digest for one in others}
            referred_to = {blob for one in others for blob in one.refers}
            seen = None if among is None else {one.digest: one.tags for one in among}
            fresh = [] if seen is None else [one.digest for one in known.values() if seen.get(one.digest) != one.tags]
            kept = reachable(known, [*keep, *fresh, *referred_to])
            # An entry that stays for its manifest's age keeps the rest of its blobs, however old those are.
            spared = [
                digest for digest in _asking(held, known) if digest not in kept and not may_remove(blob_path(digest))
            ]
            kept |= reachable(known, spared)
            used = {blob for digest in kept for blob in known[digest].blobs} | referred_to
            stored = [f"sha256:{name}" for name in self._storage.names("blobs/sha256")]
            unused = [blob for blob in _asking(held, stored) if blob not in used and may_remove(blob_path(blob))]
            sizes = {blob: self._storage.size(blob_path(blob)) or 0 for blob in _asking(held, unused)}
            if not dry_run:
                unused = self._sweep(kept | foreign, unused, may_remove, held)
        doomed = tuple(one for digest, one in known.items() if digest not in kept)
        return Garbage(artifacts=doomed, blobs=tuple(unused), size_bytes=sum(sizes[blob] for blob in unused))

    @contextlib.contextmanager
    def _index_lock(self, dry_run: bool) -> Iterator[Held]:
        if dry_run:
            yield lambda: None
        else:
            with self._storage.lock("index") as held:
                yield held

    def _sweep(
        self, kept: set[str], unused: Iterable[str], may_remove: Callable[[str], bool], held: Held
    ) -> builtins.list[str]:
        """Remove what is unused, and return what went: a push may have come upon the rest meanwhile."""
        index = self._index.read()
        remaining = Index(entries=tuple(entry for entry in index.entries if entry.digest in kept))
        # The index goes first: a crash in between leaves unused blobs, never an entry without them.
        if remaining != index:
            self._index.write(remaining, held)
        removed = []
        for blob in _asking(held, unused):
            if may_remove(blob_path(blob)):
                self._storage.delete(blob_path(blob))
                removed.append(blob)
        return removed


def _parted(found: Iterable[Descriptor | Foreign]) -> tuple[list[Descriptor], list[Foreign]]:
    ours: list[Descriptor] = []
    others: list[Foreign] = []
    for one in found:
        if isinstance(one, Descriptor):
            ours.append(one)
        else:
            others.append(one)
    return ours, others


def _asking(held: Held, work: Iterable[_T]) -> Iterator[_T]:
    """Go through work under a lock, which is renewed as it goes on."""
    for one in work:
        held()
        yield one


def _entry(descriptor: Descriptor, tag: str | None) -> IndexEntry:
    return IndexEntry(
        digest=descriptor.digest,
        size=descriptor.manifest_size,
        artifact_type=ARTIFACT_TYPES[descriptor.kind],
        tag=tag,
    )


def _kind(kind: ArtifactKind | str) -> ArtifactKind:
    try:
        return ArtifactKind(kind)
    except ValueError as error:
        raise InvalidInput(f"artifact kind {kind!r} must be one of {', '.join(ArtifactKind)}") from error


def _check_tag(tag: str) -> None:
    if not _TAG.fullmatch(tag) or _DIGEST.fullmatch(tag):
        raise InvalidInput(f"tag {tag!r} must be letters and digits joined by one of - . _ : @ + /, such as models/v1")
