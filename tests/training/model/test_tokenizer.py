"""The tokenizer gives texts back, in both languages, also words it never saw."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from belvedere_training.data.corpus import Corpus, corpus_texts
from belvedere_training.model.config import TextConfig
from belvedere_training.model.text import PAD_ID
from belvedere_training.model.tokenizer import END, MASK, answers_of, encode, learn, load, mark_ids


@pytest.fixture(scope="module")
def tokenizer(shapes: Corpus) -> Tokenizer:
    return learn(corpus_texts(shapes), 600, 16)


def test_the_fewest_texts_make_a_vocabulary_that_a_model_can_have() -> None:
    size = learn(["a", "a"], 6000, 16).get_vocab_size()
    assert size == TextConfig(vocab_size=size).vocab_size == 258


@pytest.mark.parametrize("text", ["red circle", "红色圆形", "blue 三角形", "purple arrow，紫色"])
def test_captions_come_back(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids).strip() == unicodedata.normalize("NFKC", text)


@settings(max_examples=60, deadline=None)
@given(text=st.text(alphabet=st.characters(categories=["L", "N", "P"], max_codepoint=0xFFFF), max_size=3))
def test_any_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    expected = unicodedata.normalize("NFKC", text).lower().strip()
    assert tokenizer.decode(tokenizer.encode(text).ids) in (expected, unicodedata.normalize("NFKC", expected))


def test_chinese_characters_stay_single(tokenizer: Tokenizer) -> None:
    assert len(tokenizer.encode("红色圆形").ids[:5]) == 5
    assert int((encode(tokenizer, ["红色圆形"]) != PAD_ID).sum()) == 5, "the start and four characters"


def test_answers_are_what_stands_between_a_question_mark_and_the_next_question() -> None:
    asked = ["what is there? circle\nis it blue? no", "red circle"]
    words = learn(asked, 400, 20, generative=True)
    tokens = encode(words, asked)
    said = answers_of(tokens, *mark_ids(words))
    assert (
        words.decode(tokens[0][said[0] & (tokens[0] != PAD_ID)].tolist(), skip_special_tokens=False)
        == " circle no<end>"
    )
    assert not said[1].any()


def test_texts_are_padded_and_cut_to_the_context(tokenizer: Tokenizer) -> None:
    tokens = encode(tokenizer, ["red", "zebra " * 30])
    assert tokens.shape == (2, 16)
    assert encode(tokenizer, ["red"], trim=True).shape == (1, 2)


def test_it_is_saved_whole(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    texts = ["red circle", "红色圆形", "something else"]
    assert encode(load(tmp_path / "tokenizer.json"), texts).equal(encode(tokenizer, texts))


def test_the_same_texts_give_the_same_tokenizer(shapes: Corpus) -> None:
    texts = corpus_texts(shapes)
    assert learn(texts, 600, 16).to_str() == learn(texts, 600, 16).to_str()


def test_a_generative_tokenizer_ends_its_texts_unless_they_are_to_be_continued(shapes: Corpus) -> None:
    texts = corpus_texts(shapes)
    plain, generative = learn(texts, 600, 16), learn(texts, 600, 16, generative=True)
    end, mask = generative.token_to_id(END), generative.token_to_id(MASK)
    assert {end, mask} == {plain.get_vocab_size(), plain.get_vocab_size() + 1}, "what was there keeps its number"
    ended = encode(generative, ["red circle", "zebra " * 30])
    assert (ended == end).sum(1).tolist() == [1, 1], "also where the text is cut"
    assert encode(generative, ["red circle"], to_continue=True).equal(encode(plain, ["red circle"], to_continue=True))
    assert mask in encode(generative, [f"red {MASK}"])
