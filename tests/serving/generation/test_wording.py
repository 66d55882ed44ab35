"""Parts of a text, put together, are the text; none of them is taken back."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from belvedere_serving.generation.wording import Wording
from belvedere_training.model.tokenizer import learn

TOKENIZER = learn(["a red circle", "红色的圆"], 300, 40)


def words(ids: Any) -> str:
    return str(TOKENIZER.decode(list(ids), skip_special_tokens=True))


@given(st.text(alphabet="a red 红色的圆 é😀", min_size=1, max_size=20))
def test_parts_are_the_text(text: str) -> None:
    ids = TOKENIZER.encode(text).ids
    ids = [number for number in ids if number][1:]
    wording = Wording(words)
    parts = [wording.add(token, last=False) for token in ids]
    parts.append(wording.add(None, last=True))
    assert "".join(parts) == words(ids).strip()
    assert all("\N{REPLACEMENT CHARACTER}" not in part for part in parts)


def test_a_text_cut_within_a_character_says_so() -> None:
    first = TOKENIZER.encode("😀").ids[1]
    wording = Wording(words)
    assert wording.add(first, last=False) == ""
    assert wording.add(None, last=True) == "\N{REPLACEMENT CHARACTER}"
