"""Rows: what somebody's pictures and captions say before anything is decoded, from a folder, CSV, JSONL or WebDataset."""

from __future__ import annotations

import csv
import json
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TextIO

from belvedere_platform.errors import CorruptData, InvalidInput, NotFound

PICTURES = frozenset((".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp"))
CaptionsFrom = Literal["beside", "file-name", "folder-name"]
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[a-z]+)?")
_SPLIT = re.compile(r"[a-z][a-z0-9_]*")
_TAG_SEPARATOR = "|"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One picture that is to become a sample. `problem` says why it cannot; `where` is how an error names it."""

    key: str
    where: str
    file: Path
    offset: int = 0
    num_bytes: int | None = None
    captions: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, Sequence[str]] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None

    def read(self) -> bytes:
        """Return the picture as it is stored; CorruptData when it is missing or shorter than it should be."""
        try:
            with self.file.open("rb") as file:
                file.seek(self.offset)
                data = file.read(-1 if self.num_bytes is None else self.num_bytes)
        except OSError as error:
            raise CorruptData(f"{self.where}: {error.strerror or error}") from error
        if self.num_bytes is not None and len(data) != self.num_bytes:
            raise CorruptData(f"{self.where}: {self.file.name} is cut short")
        return data


def from_folder(folder: Path, *, captions_from: CaptionsFrom, language: str) -> list[Row]:
    """Return a row for each picture below the folder.

    beside: NAME.txt holds the caption in `language`, NAME.LANG.txt one in another; otherwise a name is the caption.
    """
    _check_exists(folder, folder=True)
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES and path.is_file())
    if not files:
        raise InvalidInput(f"{folder} holds no pictures ({', '.join(sorted(PICTURES))})")
    rows = []
    for path in files:
        name = path.relative_to(folder)
        captions, problem = _captions_of(path, folder, captions_from, language)
        if not captions and problem is None:
            problem = f"{name}: there is no {path.stem}.txt with its caption beside it"
        rows.append(Row(key=_key(name.as_posix()), where=str(name), file=path, captions=captions, problem=problem))
    return rows


def _captions_of(
    path: Path, folder: Path, captions_from: CaptionsFrom, language: str
) -> tuple[dict[str, str], str | None]:
    """Return the captions, and what is wrong with their files."""
    if captions_from == "file-name":
        return {language: _words(path.stem)}, None
    if captions_from == "folder-name":
        return {language: _words(path.parent.name if path.parent != folder else folder.name)}, None
    captions = {}
    for text in sorted(path.parent.glob(f"{_escaped(path.stem)}*.txt")):
        middle = text.name[len(path.stem) : -len(".txt")].lstrip(".")
        if not middle or _LANGUAGE.fullmatch(middle):
            try:
                captions[middle or language] = text.read_text(encoding="utf8").strip()
            except UnicodeDecodeError:
                return {}, f"{text.relative_to(folder)}: not UTF-8"
    return {spoken: caption for spoken, caption in captions.items() if caption}, None


def _escaped(stem: str) -> str:
    return re.sub(r"([\[\]*?])", r"[\1]", stem)


def _words(name: str) -> str:
    """Return a file's name as words: `red_fox-2` is `red fox`."""
    return re.sub(r"[\s_-]*\d+$", "", re.sub(r"[_-]+", " ", name)).strip()


def from_csv(path: Path, *, image: str, caption: str, language: str) -> list[Row]:
    """Return a row for each line. Columns: the picture's path, CAPTION or CAPTION_LANG, and if you like tags (tags_LANG,
    separated by |), id, style, group, split, licence; any other column is kept as an attribute."""
    with _text_file(path, newline="") as file:
        reader = csv.DictReader(file)
        names = list(reader.fieldnames or ())
        if image not in names:
            raise InvalidInput(
                f"{path} has no column {image!r}; it has {', '.join(names)}: name yours with --image-column"
            )
        if not any(name == caption or name.startswith(f"{caption}_") for name in names):
            raise InvalidInput(
                f"{path} has no column {caption!r} or {caption}_LANG; it has {', '.join(names)}: name yours with --caption-column"
            )
        return [
            _from_fields(_unflattened(line, caption), image, caption, language, path, reader.line_num)
            for line in reader
        ]


def _unflattened(line: Mapping[str, Any], caption: str) -> dict[str, Any]:
    """Return the line with CAPTION_LANG and tags_LANG gathered into mappings by language."""
    fields: dict[str, Any] = {}
    for name, value in line.items():
        if name is None or value in (None, ""):
            continue
        stem, _, language = name.rpartition("_")
        if stem in (caption, "tags") and _LANGUAGE.fullmatch(language):
            fields.setdefault(stem, {})[language] = value
        else:
            fields[name] = value
    return fields


def from_jsonl(path: Path, *, image: str, caption: str, language: str) -> list[Row]:
    """Return a row for each line, an object with the same fields as a CSV's columns; caption and tags may be objects by language."""
    rows = []
    with _text_file(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                fields = json.loads(line)
            except ValueError as error:
                raise InvalidInput(f"{path} line {number} is not JSON: {error}") from error
            if not isinstance(fields, dict):
                raise InvalidInput(f"{path} line {number} must be an object with {image!r} and {caption!r}")
            rows.append(_from_fields(fields, image, caption, language, path, number))
    return rows


def _from_fields(fields: Mapping[str, Any], image: str, caption: str, language: str, path: Path, line: int) -> Row:
    where = f"{path.name} line {line}"
    captions = by_language(fields.get(caption), language)
    problem = None
    if not isinstance(fields.get(image), str):
        problem = f"{where}: {image} is missing"
    elif not captions:
        problem = f"{where}: {caption} is missing"
    location = path.parent / str(fields.get(image, ""))
    return Row(
        key=_key(str(fields.get(image, line))),
        where=f"{where} ({fields.get(image)})",
        file=location,
        captions=captions,
        tags=_tags(fields.get("tags"), language),
        facts=_facts({name: value for name, value in fields.items() if name not in (image, caption, "tags")}, where),
        problem=problem,
    )


def by_language(value: Any, language: str) -> dict[str, str]:
    """Return captions by language from one text or a mapping; those that are empty are left out."""
    texts = value if isinstance(value, Mapping) else {language: value}
    return {str(spoken): text.strip() for spoken, text in texts.items() if isinstance(text, str) and text.strip()}


def _tags(value: Any, language: str) -> dict[str, tuple[str, ...]]:
    lists = value if isinstance(value, Mapping) else {language: value}
    return {str(spoken): _list(tags) for spoken, tags in lists.items() if tags}


def _list(tags: Any) -> tuple[str, ...]:
    parts: Iterable[Any] = tags.split(_TAG_SEPARATOR) if isinstance(tags, str) else tags
    return tuple(text for text in (str(part).strip() for part in parts) if text)


_KNOWN = ("id", "style", "group", "split", "licence")


def _facts(fields: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the known fields as they are, and the others as attributes."""
    split = fields.get("split")
    if split is not None and not (isinstance(split, str) and _SPLIT.fullmatch(split)):
        raise InvalidInput(f"{where}: split is {split!r}; use lower-case letters, digits and _, for example train")
    known = {name: str(fields[name]) for name in _KNOWN if fields.get(name) not in (None, "")}
    others = {
        name: value for name, value in fields.items() if name not in _KNOWN and isinstance(value, (str, int, bool))
    }
    return known | ({"attributes": others} if others else {})


def from_webdataset(path: Path, *, caption: str, language: str) -> list[Row]:
    """Return a row for each sample of a shard, or of all shards of a folder: a picture with KEY.txt or KEY.json beside it."""
    _check_exists(path, folder=path.is_dir())
    shards = sorted(path.glob("*.tar")) if path.is_dir() else [path]
    if not shards:
        raise InvalidInput(f"{path} holds no .tar shards")
    return [row for shard in shards for row in _shard_rows(shard, caption, language)]


def _shard_rows(shard: Path, caption: str, language: str) -> Iterator[Row]:
    count = 0
    for key, members, texts in _samples(shard):
        count += 1
        where = f"{shard.name}: {key}"
        picture = next((member for extension, member in members.items() if f".{extension}" in PICTURES), None)
        fields = _json_fields(texts.get("json"))
        text = texts["txt"].decode(errors="replace") if "txt" in texts else fields.get("captions", fields.get(caption))
        captions = by_language(text, language)
        problem = f"{where} has no picture" if picture is None else None if captions else f"{where} has no caption"
        known = {name: value for name, value in fields.items() if name not in (caption, "captions", "tags")}
        yield Row(
            key=_key(f"{shard.stem}/{key}"),
            where=where,
            file=shard,
            offset=picture.offset_data if picture else 0,
            num_bytes=picture.size if picture else 0,
            captions=captions,
            tags=_tags(fields.get("tags"), language),
            facts=_facts(known, where),
            problem=problem,
        )
    if not count:
        raise CorruptData(f"shard {shard.name} holds no sample")


def _samples(shard: Path) -> Iterator[tuple[str, dict[str, tarfile.TarInfo], dict[str, bytes]]]:
    """Yield (key, members by extension, the bytes of its texts); neighbours with one key are one sample."""
    key, members, texts = "", dict[str, tarfile.TarInfo](), dict[str, bytes]()
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                folder, _, name = member.name.rpartition("/")
                stem, _, extension = name.partition(".")
                own = f"{folder}/{stem}".lstrip("./")
                if own != key and members:
                    yield key, members, texts
                    members, texts = {}, {}
                key, members[extension.lower()] = own, member
                if extension.lower() in ("txt", "json"):
                    file = tar.extractfile(member)
                    assert file is not None
                    texts[extension.lower()] = file.read()
    except tarfile.TarError as error:
        raise CorruptData(f"shard {shard.name} is not a whole tar (after {key or 'its start'}): {error}") from error
    if members:
        yield key, members, texts


def _json_fields(data: bytes | None) -> dict[str, Any]:
    if data is None:
        return {}
    try:
        fields = json.loads(data)
    except ValueError:
        return {}  # the sample then has no caption, and is counted as one that cannot be used
    return fields if isinstance(fields, dict) else {}


def _key(name: str) -> str:
    """Return the name as a WebDataset key: what stands for a folder or an extension there is replaced."""
    return re.sub(r"[^\w-]", "_", name.rpartition(".")[0] or name)


@contextmanager
def _text_file(path: Path, newline: str | None = None) -> Iterator[TextIO]:
    """Open a table, with or without a byte order mark. Raises InvalidInput where it is not UTF-8."""
    _check_exists(path)
    with path.open(encoding="utf-8-sig", newline=newline) as file:
        try:
            yield file
        except UnicodeDecodeError as error:
            raise InvalidInput(f"{path} is not UTF-8 text: save it as such ({error.reason})") from error


def _check_exists(path: Path, *, folder: bool = False) -> None:
    if not (path.is_dir() if folder else path.is_file()):
        raise NotFound(f"{path}: there is no such {'folder' if folder else 'file'}")
