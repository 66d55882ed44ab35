"""Questions and answers become pictures with a caption and their questions."""

from __future__ import annotations

import pytest

from belvedere_training.data.vqa import caption_of, easy_vqa_rows


@pytest.mark.parametrize(
    ("questions", "caption"),
    [
        ([["what is the blue shape?", "rectangle"], ["what color is the shape?", "blue"]], "blue rectangle"),
        ([["what color is the triangle?", "teal"]], "teal triangle"),
        ([["is there not a circle in the image?", "no"], ["is there a red shape?", "no"]], "circle"),
        ([["is no circle present?", "yes"]], "shape"),
    ],
)
def test_the_caption_is_what_the_answers_say(questions: list[list[str]], caption: str) -> None:
    assert caption_of(questions) == caption


def test_the_package_holds_what_its_page_says() -> None:
    pytest.importorskip("easy_vqa")
    rows = easy_vqa_rows()
    assert [sum(row.facts["split"] == split for row in rows) for split in ("train", "heldout")] == [4000, 1000]
    assert sum(len(row.facts["questions"]) for row in rows) == 38575 + 9673
    assert rows[0].captions == {"en": "blue rectangle"}
    assert rows[0].read().startswith(b"\x89PNG")
