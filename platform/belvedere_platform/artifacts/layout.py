"""The documents of an OCI image layout: manifests, configs and the index, as pure functions of their content.

Model artifacts follow the CNCF ModelPack specification 1.0 (github.com/modelpack/model-spec): its config document has a
closed schema, so our own configuration travels in the manifest annotation `dev.belvedere.config`.
Dataset and engine artifacts have media types of our own and carry their configuration as the config blob.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

from belvedere_platform.errors import InvalidInput

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
LAYOUT_VERSION = "1.0.0"

TAG_ANNOTATION = "org.opencontainers.image.ref.name"
TITLE_ANNOTATION = "org.opencontainers.image.title"
FILEPATH_ANNOTATION = "org.cncf.model.filepath"
CONFIG_ANNOTATION = "dev.belvedere.config"


class ArtifactKind(StrEnum):
    """What an artifact is."""

    DATASET = "dataset"
    MODEL = "model"
    ENGINE = "engine"


ARTIFACT_TYPES = {
    ArtifactKind.MODEL: "application/vnd.cncf.model.manifest.v1+json",
    ArtifactKind.DATASET: "application/vnd.belvedere.dataset.manifest.v1+json",
    ArtifactKind.ENGINE: "application/vnd.belvedere.engine.manifest.v1+json",
}
CONFIG_TYPES = {
    ArtifactKind.MODEL: "application/vnd.cncf.model.config.v1+json",
    ArtifactKind.DATASET: "application/vnd.belvedere.dataset.config.v1+json",
    ArtifactKind.ENGINE: "application/vnd.belvedere.engine.config.v1+json",
}
_MODEL_WEIGHT = "application/vnd.cncf.model.weight.v1.raw"
_MODEL_WEIGHT_CONFIG = "application/vnd.cncf.model.weight.config.v1.raw"
_MODEL_DOCUMENT = "application/vnd.cncf.model.doc.v1.raw"
_FILE_TYPES = {
    ArtifactKind.DATASET: "application/vnd.belvedere.dataset.file.v1.raw",
    ArtifactKind.ENGINE: "application/vnd.belvedere.engine.file.v1.raw",
}
# Exported programs hold the weights too.
_WEIGHT_SUFFIXES = (".safetensors", ".onnx", ".pt2")
_WEIGHT_CONFIG_NAMES = frozenset({"model.json", "config.json", "tokenizer.json", "preprocess.json"})


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """One file of an artifact."""

    name: str
    digest: str
    size: int
    media_type: str


@dataclass(frozen=True, kw_only=True)
class Descriptor:
    """An artifact, known by the digest of its manifest."""

    digest: str
    manifest_size: int
    kind: ArtifactKind
    files: tuple[FileEntry, ...]
    config_digest: str
    config_size: int
    annotations: Mapping[str, str] = field(default_factory=dict)
    subject: str | None = None
    tags: tuple[str, ...] = ()

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.files)

    @property
    def blobs(self) -> frozenset[str]:
        """Every blob this artifact needs."""
        return frozenset({self.digest, self.config_digest, *(entry.digest for entry in self.files)})


@dataclass(frozen=True, kw_only=True)
class Foreign:
    """What another tool put into the layout: its type, and every digest that it needs or names, its own included."""

    digest: str
    artifact_type: str
    refers: frozenset[str]
    tags: tuple[str, ...] = ()


def canonical(document: Any) -> bytes:
    """Return JSON whose bytes depend on the content alone."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def digest_of(content: bytes) -> str:
    """Return the sha256 digest as OCI writes it."""
    return "sha256:" + hashlib.sha256(content).hexdigest()


def blob_path(digest: str) -> str:
    """Return where a blob is in the layout."""
    return f"blobs/sha256/{blob_name(digest)}"


def blob_name(digest: str) -> str:
    """Return the file name of a blob."""
    return digest.removeprefix("sha256:")


def check_name(name: str) -> str:
    """Return the file name, or raise InvalidInput when it would leave the directory it is pulled into."""
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or str(path) != name or "\\" in name or "\0" in name:
        raise InvalidInput(f"artifact file name {name!r} must be a relative path without '..', such as examples/1.png")
    return name


def media_type_of(kind: ArtifactKind, name: str) -> str:
    """Return a file's layer media type; in ModelPack weights, their configuration and documents differ."""
    if kind is not ArtifactKind.MODEL:
        return _FILE_TYPES[kind]
    if name.endswith(_WEIGHT_SUFFIXES):
        return _MODEL_WEIGHT
    return _MODEL_WEIGHT_CONFIG if name in _WEIGHT_CONFIG_NAMES else _MODEL_DOCUMENT


def config_document(kind: ArtifactKind, config: Mapping[str, Any], files: Sequence[FileEntry]) -> bytes:
    """Return the config blob: ModelPack's for models, our configuration for the others."""
    if kind is not ArtifactKind.MODEL:
        return canonical({**config, "kind": kind.value})
    descriptor = {key: str(config[key]) for key in ("version",) if config.get(key)}
    if config.get("model"):
        descriptor |= {"name": str(config["model"]), "family": str(config["model"])}
    return canonical(
        {
            "descriptor": descriptor,
            "config": {
                "format": "safetensors",
                "capabilities": {"inputTypes": ["text", "image"], "outputTypes": ["embedding"]},
            },
            "modelfs": {"type": "layers", "diffIds": [entry.digest for entry in files]},
        }
    )


def manifest_document(
    kind: ArtifactKind,
    files: Sequence[FileEntry],
    *,
    config: Mapping[str, Any],
    config_blob: bytes,
    annotations: Mapping[str, str],
    subject: Descriptor | None,
) -> bytes:
    """Return the manifest. The same files, config, annotations and subject give the same bytes."""
    given = dict(annotations)
    if kind is ArtifactKind.MODEL:
        given[CONFIG_ANNOTATION] = canonical({**config, "kind": kind.value}).decode()
    document: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": ARTIFACT_TYPES[kind],
        "config": {"mediaType": CONFIG_TYPES[kind], "digest": digest_of(config_blob), "size": len(config_blob)},
        "layers": [_layer(kind, entry) for entry in files],
    }
    if given:
        document["annotations"] = given
    if subject is not None:
        document["subject"] = {"mediaType": MANIFEST, "digest": subject.digest, "size": subject.manifest_size}
    return canonical(document)


def _layer(kind: ArtifactKind, entry: FileEntry) -> dict[str, Any]:
    annotations = {TITLE_ANNOTATION: entry.name}
    if kind is ArtifactKind.MODEL:
        annotations[FILEPATH_ANNOTATION] = entry.name
    return {
        "mediaType": entry.media_type,
        "digest": entry.digest,
        "size": entry.size,
        "annotations": annotations,
    }


def parse_manifest(digest: str, content: bytes, *, tags: Sequence[str] = ()) -> Descriptor:
    """Return the descriptor that a manifest describes."""
    document = json.loads(content)
    kinds = {artifact_type: kind for kind, artifact_type in ARTIFACT_TYPES.items()}
    kind = kinds.get(document.get("artifactType"))
    if kind is None:
        raise InvalidInput(
            f"artifact {digest} has the type {document.get('artifactType')!r}; Belvedere reads {', '.join(kinds)}"
        )
    return Descriptor(
        digest=digest,
        manifest_size=len(content),
        kind=kind,
        files=tuple(
            FileEntry(
                name=check_name(
                    layer["annotations"].get(FILEPATH_ANNOTATION) or layer["annotations"][TITLE_ANNOTATION]
                ),
                digest=layer["digest"],
                size=layer["size"],
                media_type=layer["mediaType"],
            )
            for layer in document["layers"]
        ),
        config_digest=document["config"]["digest"],
        config_size=document["config"]["size"],
        annotations=document.get("annotations", {}),
        subject=document.get("subject", {}).get("digest"),
        tags=tuple(sorted(tags)),
    )


def is_foreign(document: Mapping[str, Any]) -> bool:
    """Return whether a manifest, or its entry in the index, has a type that is none of ours."""
    return document.get("artifactType") not in ARTIFACT_TYPES.values()


def type_of(document: Mapping[str, Any], media_type: str) -> str:
    """Return the type of a foreign manifest: as OCI has it, that of its config where it names none."""
    return str(document.get("artifactType") or document.get("config", {}).get("mediaType") or media_type)


def referred(document: Mapping[str, Any]) -> tuple[set[str], set[str]]:
    """Return the digests of the blobs that any manifest or image index needs, and of the manifests that it names."""
    manifests = [*document.get("manifests", ()), *filter(None, [document.get("subject")])]
    blobs = [*document.get("layers", ()), *document.get("blobs", ()), *filter(None, [document.get("config")])]
    return {one["digest"] for one in blobs}, {one["digest"] for one in manifests}


@dataclass(frozen=True, kw_only=True)
class IndexEntry:
    """One manifest of the index, with one tag or none."""

    digest: str
    size: int
    artifact_type: str
    tag: str | None = None
    foreign: Mapping[str, Any] | None = None
    """Of what another tool wrote, all that it wrote: its entry is written again as it was."""


@dataclass(frozen=True, kw_only=True)
class Index:
    """The index of the layout: every manifest, each tag once."""

    entries: tuple[IndexEntry, ...] = ()

    @staticmethod
    def parse(content: bytes) -> Index:
        """Read index.json."""
        return Index(
            entries=tuple(
                IndexEntry(
                    digest=entry["digest"],
                    size=entry["size"],
                    artifact_type=entry.get("artifactType", ""),
                    tag=entry.get("annotations", {}).get(TAG_ANNOTATION),
                    foreign=entry if is_foreign(entry) else None,
                )
                for entry in json.loads(content)["manifests"]
            )
        )

    def document(self) -> bytes:
        """Write index.json, in an order that does not depend on history."""
        ordered = sorted(self.entries, key=lambda entry: (entry.tag or "", entry.digest))
        return canonical(
            {"schemaVersion": 2, "mediaType": INDEX, "manifests": [_index_entry(entry) for entry in ordered]}
        )

    @cached_property
    def digests(self) -> dict[str, tuple[str, ...]]:
        """Tags by manifest digest."""
        tags: dict[str, list[str]] = {}
        for entry in self.entries:
            known = tags.setdefault(entry.digest, [])
            if entry.tag is not None:
                known.append(entry.tag)
        return {digest: tuple(known) for digest, known in tags.items()}

    @cached_property
    def _by_tag(self) -> dict[str, str]:
        return {entry.tag: entry.digest for entry in reversed(self.entries) if entry.tag is not None}

    def tagged(self, tag: str) -> str | None:
        """Return the digest behind a tag."""
        return self._by_tag.get(tag)

    def add(self, entry: IndexEntry) -> Index:
        """Return the index with a manifest under its tag; the one that had the tag stays, untagged."""
        return Index(entries=(*self.entries, entry))._moved(entry)

    def _moved(self, new: IndexEntry) -> Index:
        rest = [entry for entry in self.entries if entry is not new]
        moved = [replace(entry, tag=None) if new.tag is not None and entry.tag == new.tag else entry for entry in rest]
        return Index(entries=(*moved, new)).tidied()

    def tidied(self) -> Index:
        """Return the index without repetitions: an untagged entry only where no tag names the digest."""
        named = {entry.digest for entry in self.entries if entry.tag is not None}
        kept: dict[tuple[str | None, str], IndexEntry] = {}
        for entry in self.entries:
            if entry.tag is not None or entry.digest not in named:
                kept[entry.tag, entry.digest] = entry
        return Index(entries=tuple(kept.values()))


def _index_entry(entry: IndexEntry) -> dict[str, Any]:
    if entry.foreign is not None:
        return _foreign_entry(entry.foreign, entry.tag)
    document: dict[str, Any] = {
        "mediaType": MANIFEST,
        "artifactType": entry.artifact_type,
        "digest": entry.digest,
        "size": entry.size,
    }
    if entry.tag is not None:
        document["annotations"] = {TAG_ANNOTATION: entry.tag}
    return document


def _foreign_entry(original: Mapping[str, Any], tag: str | None) -> dict[str, Any]:
    rest = {name: value for name, value in original.get("annotations", {}).items() if name != TAG_ANNOTATION}
    annotations = rest if tag is None else {**rest, TAG_ANNOTATION: tag}
    document = {name: value for name, value in original.items() if name != "annotations"}
    return {**document, "annotations": annotations} if annotations else document
