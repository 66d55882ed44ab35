"""The twelve licence-clean drawing styles: where each comes from, its licence, and its part in training."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from belvedere_platform.errors import InvalidInput
from belvedere_training.data.concepts import Vocabulary, normal_id
from belvedere_training.data.packages import members

Role = Literal["train", "heldout", "hard"]


@dataclass(frozen=True, kw_only=True)
class Style:
    """One way of drawing, from one package."""

    name: str
    package: str
    licence: str
    author: str
    role: Role = "train"
    folder: str = ""  # empty: an Iconify set (icons.json); else the folder of files in the package


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """One picture as its vendor ships it: SVG text or WebP bytes."""

    style: str
    concept: str
    data: bytes
    svg: bool


def _iconify(name: str, package: str, licence: str, author: str, role: Role = "train") -> Style:
    return Style(name=name, package=f"@iconify-json/{package}", licence=licence, author=author, role=role)


STYLES: Mapping[str, Style] = {
    style.name: style
    for style in (
        _iconify("noto", "noto", "Apache-2.0", "Google Inc"),
        _iconify("noto-blob", "noto-v1", "Apache-2.0", "Google Inc"),
        _iconify("twemoji", "twemoji", "CC-BY-4.0", "Twitter, Inc and other contributors", "heldout"),
        _iconify("openmoji", "openmoji", "CC-BY-SA-4.0", "OpenMoji, HfG Schwäbisch Gmünd"),
        _iconify("emojione2", "emojione", "CC-BY-4.0", "EmojiTwo / Emoji One"),
        _iconify("emojione1", "emojione-v1", "CC-BY-SA-4.0", "Emoji One"),
        _iconify("fxemoji", "fxemoji", "Apache-2.0", "Mozilla"),
        _iconify("fluent", "fluent-emoji", "MIT", "Microsoft Corporation"),
        _iconify("fluent-flat", "fluent-emoji-flat", "MIT", "Microsoft Corporation"),
        Style(
            name="fluent-3d",
            package="@lobehub/fluent-emoji-3d",
            licence="MIT",
            author="Microsoft Corporation",
            folder="assets/",
        ),
        Style(
            name="openmoji-black",
            package="openmoji",
            licence="CC-BY-SA-4.0",
            author="OpenMoji, HfG Schwäbisch Gmünd",
            role="hard",
            folder="black/svg/",
        ),
        Style(
            name="fluent-hc",
            package="fluentui-emoji",
            licence="MIT",
            author="Microsoft Corporation",
            folder="icons/high-contrast/",
        ),
    )
}


def chosen(names: tuple[str, ...]) -> list[Style]:
    """Return the styles of these names, all of them for none; InvalidInput names an unknown one."""
    unknown = [name for name in names if name not in STYLES]
    if unknown:
        raise InvalidInput(f"--styles has {unknown[0]!r}; allowed are {', '.join(STYLES)}")
    return [style for style in STYLES.values() if not names or style.name in names]


def read_drawings(style: Style, tarball: Path, vocabulary: Vocabulary) -> Iterator[Drawing]:
    """Yield the style's drawing of each concept it knows, skin tones left out, at most one a concept."""
    found = _iconify_drawings(style, tarball, vocabulary) if not style.folder else _files(style, tarball, vocabulary)
    seen: set[str] = set()
    for drawing in found:
        if drawing.concept not in seen:
            seen.add(drawing.concept)
            yield drawing


def _files(style: Style, tarball: Path, vocabulary: Vocabulary) -> Iterator[Drawing]:
    """Yield single-file drawings, named by code points or by the slug of the English label."""
    for path, data in members(tarball, style.folder):
        stem, _, extension = path.rsplit("/", 1)[-1].rpartition(".")
        identifier = normal_id(stem)
        if identifier not in vocabulary.concepts:
            identifier = vocabulary.slugs.get(stem, "") if style.name == "fluent-hc" else ""
        if identifier and extension in ("svg", "webp"):
            yield Drawing(style=style.name, concept=identifier, data=data, svg=extension == "svg")


def _iconify_drawings(style: Style, tarball: Path, vocabulary: Vocabulary) -> Iterator[Drawing]:
    files = {name: json.loads(data) for name, data in members(tarball, "", ".json") if name in _ICONIFY_FILES}
    icons = files["icons.json"]
    for identifier, name in _icon_names(files, vocabulary):
        alias = icons.get("aliases", {}).get(name)
        icon = icons["icons"].get(name) or (icons["icons"].get(alias["parent"]) if alias else None)
        if icon is not None:
            yield Drawing(style=style.name, concept=identifier, data=_svg(icon, icons), svg=True)


_ICONIFY_FILES = frozenset(("icons.json", "chars.json"))


def _icon_names(files: Mapping[str, Any], vocabulary: Vocabulary) -> Iterator[tuple[str, str]]:
    """Yield (concept, icon name): by code point where the set has a table of them, else by the letters of the name."""
    if files["chars.json"]:
        for hexcode, name in files["chars.json"].items():
            if normal_id(hexcode) in vocabulary.concepts:
                yield normal_id(hexcode), name
        return
    for name in files["icons.json"]["icons"]:
        spelled = re.sub(r"[^a-z0-9]", "", name)
        identifier = vocabulary.aliases.get(spelled) or vocabulary.aliases.get(re.sub(r"^flagfor", "flag", spelled))
        if identifier:
            yield identifier, name


def _svg(icon: Mapping[str, Any], icons: Mapping[str, Any]) -> bytes:
    width, height = icon.get("width", icons.get("width", 16)), icon.get("height", icons.get("height", 16))
    box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{box}" width="{width}" height="{height}" color="#222">{icon["body"]}</svg>'
    ).encode()
