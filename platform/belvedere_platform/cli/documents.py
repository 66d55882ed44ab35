"""Read YAML documents from files, folders or standard input, and check all of them before any is used."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from belvedere_platform.errors import InvalidInput, NotFound
from belvedere_platform.resources.base import API_VERSION
from belvedere_platform.store import Manifest
from belvedere_platform.store.kinds import KINDS, Kind

_SUFFIXES = frozenset({".yaml", ".yml", ".json"})


@dataclass(frozen=True, kw_only=True)
class Document:
    """One manifest, and where it was read."""

    manifest: Manifest
    kind: Kind
    source: str

    @property
    def name(self) -> str:
        """Return `kind/name`, as people write it."""
        return f"{self.kind.kind.lower()}/{self.manifest['metadata']['name']}"


def read_documents(places: Iterable[str], *, namespace: str) -> list[Document]:
    """Return every document, checked. Raises InvalidInput or NotFound that names the file."""
    found = [
        _document(value, source, namespace)
        for place in places
        for source, text in _texts(place)
        for source, value in _parse(source, text)
    ]
    if not found:
        raise InvalidInput(f"there is no object in {', '.join(places)}")
    seen: dict[tuple[str, str, str], str] = {}
    for one in found:
        identity = (one.kind.kind, one.manifest["metadata"].get("namespace", ""), one.manifest["metadata"]["name"])
        if identity in seen:
            raise InvalidInput(f"{one.source}: {one.name} is given twice, first in {seen[identity]}")
        seen[identity] = one.source
    return found


def _texts(place: str) -> Iterator[tuple[str, str]]:
    if place == "-":
        yield "standard input", sys.stdin.read()
        return
    path = Path(place)
    if path.is_dir():
        for file in sorted(path.iterdir()):
            if file.suffix in _SUFFIXES:
                yield str(file), file.read_text(encoding="utf-8")
        return
    try:
        yield place, path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise NotFound(f"--filename {place} does not exist") from error
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{place} is not a text file: {error}") from error


def _parse(source: str, text: str) -> Iterator[tuple[str, Any]]:
    try:
        for node in yaml.compose_all(text, Loader=yaml.SafeLoader):
            value = None if node is None else _construct(node)
            # A document of comments only is no object, and no mistake either.
            if node is not None and value is not None:
                yield f"{source}:{node.start_mark.line + 1}", value
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{source}:{mark.line + 1}:{mark.column + 1}" if mark else source
        raise InvalidInput(f"{where}: not YAML: {error.problem or error.context}") from error


def _construct(node: yaml.Node) -> Any:
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _document(value: Any, source: str, namespace: str) -> Document:
    if not isinstance(value, dict):
        raise InvalidInput(f"{source}: an object must be a map with apiVersion, kind and metadata, not {value!r:.60}")
    kind = _kind(value, source)
    metadata = value.get("metadata")
    if not isinstance(metadata, dict) or not isinstance(metadata.get("name"), str):
        raise InvalidInput(f"{source}: metadata.name of this {kind.kind} is missing; give it a name")
    if kind.namespaced and not metadata.get("namespace"):
        value = {**value, "metadata": {**metadata, "namespace": namespace}}
    if kind.api_version == API_VERSION:
        from belvedere_platform.resources.validation import admit

        try:
            admit({key: part for key, part in value.items() if key != "status"})
        except InvalidInput as error:
            raise InvalidInput(f"{source}: {error}") from error
    return Document(manifest=value, kind=kind, source=source)


def _kind(value: dict[str, Any], source: str) -> Kind:
    api_version, name = value.get("apiVersion"), value.get("kind")
    for kind in KINDS:
        if (kind.api_version, kind.kind) == (api_version, name):
            return kind
    from difflib import get_close_matches

    near = get_close_matches(str(name), [kind.kind for kind in KINDS], n=1)
    right = next((kind for kind in KINDS if near and kind.kind == near[0]), None)
    hint = (
        f"did you mean apiVersion {right.api_version} and kind {right.kind}?"
        if right
        else f"known kinds are {', '.join(kind.kind for kind in KINDS)}"
    )
    raise InvalidInput(f"{source}: apiVersion {api_version!r} with kind {name!r} is not known; {hint}")
