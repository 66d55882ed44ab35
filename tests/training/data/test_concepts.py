"""Families: variants of one thing stay together, and are held out together."""

from __future__ import annotations

import pytest

from belvedere_training.data.concepts import Concept, family_of, held_out_families, letters, normal_id, slug


@pytest.mark.parametrize(
    ("one", "other", "group"),
    [
        ("man health worker", "woman health worker", "people-body"),
        ("person walking", "woman walking: facing right", "people-body"),
        ("kiss", "kiss: woman, man", "people-body"),
        ("red circle", "blue circle", "symbols"),
        ("grinning cat", "cat with tears of joy", "smileys-emotion"),
        ("one o’clock", "twelve o’clock", "travel-places"),
        ("books", "green book", "objects"),
    ],
)
def test_variants_are_one_family(one: str, other: str, group: str) -> None:
    assert family_of(one, group, "any") == family_of(other, group, "any")


@pytest.mark.parametrize(
    ("one", "other", "group", "subgroup"),
    [
        ("flag: France", "flag: Germany", "flags", "country-flag"),
        ("grinning face", "frowning face", "smileys-emotion", "face-smiling"),
        ("man teacher", "man singer", "people-body", "person-role"),
        ("play button", "reverse button", "symbols", "av-symbol"),
    ],
)
def test_different_things_are_different_families(one: str, other: str, group: str, subgroup: str) -> None:
    assert family_of(one, group, subgroup) != family_of(other, group, subgroup)


def concept(number: int, family: str) -> Concept:
    return Concept(id=f"{number:X}", group="g", subgroup="s", captions={}, tags={}, family=family)


def test_about_a_tenth_is_held_out_by_whole_families_in_any_order() -> None:
    concepts = [concept(n, f"family {n // 4}") for n in range(400)]
    held = held_out_families(concepts)
    assert held == held_out_families(reversed(concepts))
    assert 36 <= sum(c.family in held for c in concepts) <= 40


def test_a_family_too_large_is_never_held_out() -> None:
    concepts = [concept(n, "face") for n in range(300)] + [concept(1000 + n, f"f{n}") for n in range(100)]
    assert "face" not in held_out_families(concepts)


def test_names_are_compared_by_their_letters() -> None:
    assert normal_id("1f6a3-200d-2642-fe0f") == "1F6A3-200D-2642"
    assert letters("Twelve O’Clock") == "twelveoclock"
    assert slug("Man’s shoe!") == "mans-shoe"
