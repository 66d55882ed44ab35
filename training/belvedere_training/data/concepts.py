"""What is drawn: concepts with names and tags in two languages, their families, and which families are held out."""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from belvedere_training.data.packages import members

HELD_OUT_SHARE = 0.1
LARGEST_HELD_OUT_FAMILY = 24  # a larger family would make the tenth depend on one draw

_PERSON_WORDS = frozenset(
    [
        "man",
        "men",
        "woman",
        "women",
        "person",
        "people",
        "boy",
        "girl",
        "boys",
        "girls",
        "child",
        "baby",
        "adult",
        "mr",
        "mrs",
        "mx",
        "santa",
        "older",
        "elderly",
        "male",
        "female",
        "deaf",
    ]
)
# Heads that say nothing of what is drawn: the whole phrase is the family then.
_GENERIC_HEADS = frozenset(["face", "button", "sign", "symbol", "mark", "hand", "hands", "worker", "and", "in", "of"])
_SHORTCODES = ("joypixels", "github", "iamcal", "cldr", "emojibase")


@dataclass(frozen=True, kw_only=True)
class Concept:
    """One thing that vendors draw, by its code points without variation selectors."""

    id: str
    group: str
    subgroup: str
    captions: Mapping[str, str]
    tags: Mapping[str, tuple[str, ...]]
    family: str


def normal_id(hexcode: str) -> str:
    """Return the code points in upper case without U+FE0F, which vendors write or omit at will."""
    return "-".join(part for part in hexcode.upper().split("-") if part != "FE0F")


def letters(name: str) -> str:
    """Return only the letters and digits of a name, for comparing spellings across vendors."""
    return re.sub(r"[^a-z0-9]", "", name.lower().replace("’", ""))


def slug(label: str) -> str:
    """Return the label as file names of the high-contrast set spell it."""
    return re.sub(r"[^a-z0-9]+", "-", label.lower().replace("’", "")).strip("-")


def family_of(label: str, group: str, subgroup: str) -> str:
    """Return the name shared by all variants of a thing: gender, person, direction and attribute words are dropped.

    Flags stand alone, persons go by their role, everything else goes by its head noun, in whatever subgroup it is.
    """
    if subgroup in ("country-flag", "subdivision-flag"):
        return label.lower()
    text = re.sub(r"\(.*?\)", " ", label.lower()).split(":")[0]
    if group == "people-body":
        kept = [word for word in re.findall(r"[a-z]+", text) if word not in _PERSON_WORDS]
        return " ".join(("people-body", *(kept or ["person"])))
    text = re.split(r" (?:with|in|on|over|facing|showing|without|of|for|at|behind|under) ", f"{text} ")[0]
    words = re.findall(r"[^\W_]+(?:[-’'][^\W_]+)*", text) or [label.lower()]
    return " ".join(words) if words[-1] in _GENERIC_HEADS else _singular(words[-1])


def _singular(word: str) -> str:
    """Return the word without a plural s, so that `book` and `books` are one family."""
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def held_out_families(concepts: Iterable[Concept], share: float = HELD_OUT_SHARE) -> frozenset[str]:
    """Return families, in the order of their hash, until they cover the share of all concepts."""
    sizes: dict[str, int] = defaultdict(int)
    for concept in concepts:
        sizes[concept.family] += 1
    wanted = round(share * sum(sizes.values()))
    chosen: set[str] = set()
    covered = 0
    for family in sorted(sizes, key=lambda name: hashlib.sha256(name.encode()).hexdigest()):
        if sizes[family] <= min(LARGEST_HELD_OUT_FAMILY, wanted - covered):
            chosen.add(family)
            covered += sizes[family]
    return frozenset(chosen)


def held_out_concepts(identifiers: Iterable[str]) -> frozenset[str]:
    """Return the concepts whose hash falls into a fixed tenth: their variants stay in training, so they are easier."""
    tenth = (
        name for name in identifiers if int(hashlib.md5(name.encode(), usedforsecurity=False).hexdigest(), 16) % 10 == 0
    )
    return frozenset(tenth)


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """All concepts, and the ways in which vendors may name them."""

    concepts: Mapping[str, Concept]
    aliases: Mapping[str, str]
    slugs: Mapping[str, str]


def read_vocabulary(emojibase: Path) -> Vocabulary:
    """Read names and tags (en, zh), groups, and the aliases of each concept from the emojibase tarball."""
    wanted = {"en/data.json", "zh/data.json", "meta/groups.json", "meta/unicode-names.json"}
    wanted |= {f"en/shortcodes/{name}.json" for name in _SHORTCODES}
    files = {name: json.loads(data) for name, data in members(emojibase, "", ".json") if name in wanted}
    chinese = {entry["hexcode"]: entry for entry in files["zh/data.json"]}
    groups = files["meta/groups.json"]
    concepts = {
        concept.id: concept
        for entry in files["en/data.json"]
        if entry["hexcode"] in chinese
        for concept in (_concept(entry, chinese[entry["hexcode"]], groups),)
    }
    return Vocabulary(
        concepts=concepts,
        aliases=_aliases(concepts, files),
        slugs={slug(concept.captions["en"]): concept.id for concept in concepts.values()},
    )


def _concept(english: Mapping[str, Any], chinese: Mapping[str, Any], groups: Mapping[str, Any]) -> Concept:
    group = groups["groups"].get(str(english.get("group", "")), "component")
    subgroup = groups["subgroups"].get(str(english.get("subgroup", "")), "regional-indicator")
    return Concept(
        id=normal_id(english["hexcode"]),
        group=group,
        subgroup=subgroup,
        captions={"en": english["label"], "zh": chinese["label"]},
        tags={"en": tuple(english.get("tags", ())), "zh": tuple(chinese.get("tags", ()))},
        family=family_of(english["label"], group, subgroup),
    )


def _aliases(concepts: Mapping[str, Concept], files: Mapping[str, Any]) -> dict[str, str]:
    """Return letters of a name → concept. Earlier sources win, so an official label is never taken by a nickname."""
    aliases: dict[str, str] = {}

    def add(name: str, identifier: str) -> None:
        if letters(name) and identifier in concepts:
            aliases.setdefault(letters(name), identifier)

    for concept in concepts.values():
        add(concept.captions["en"], concept.id)
    for hexcode, name in files["meta/unicode-names.json"].items():
        add(name, normal_id(hexcode))
    for source in _SHORTCODES:
        for hexcode, names in files[f"en/shortcodes/{source}.json"].items():
            for name in [names] if isinstance(names, str) else names:
                add(name, normal_id(hexcode))
    return aliases
