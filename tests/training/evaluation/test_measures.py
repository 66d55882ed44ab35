"""Measures against naive versions, on models and embeddings whose answer is known."""

from __future__ import annotations

import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from torch.nn import functional

from belvedere_training.data.corpus import Corpus, corpus_texts
from belvedere_training.evaluation.classification import accuracy
from belvedere_training.evaluation.embeddings import Embedded
from belvedere_training.evaluation.fusing import caption_scores, decode_greedily, fuses, match_auc, next_words, targets
from belvedere_training.evaluation.geometry import gap_metrics, probe, probe_metrics, robustness_metrics
from belvedere_training.evaluation.matching import auc, similarity_auc, wrong_partners
from belvedere_training.evaluation.questions import Question, share_right
from belvedere_training.evaluation.retrieval import recall, retrieval_metrics
from belvedere_training.model.config import FusionConfig, ModelConfig
from belvedere_training.model.tokenizer import encode, learn
from belvedere_training.model.vision_language import VisionLanguageModel

SCORES = st.lists(st.integers(0, 4), min_size=1, max_size=12)


@given(SCORES, SCORES)
def test_auc_counts_pairs(positive: list[int], negative: list[int]) -> None:
    naive = sum((p > n) + 0.5 * (p == n) for p in positive for n in negative) / (len(positive) * len(negative))
    assert math.isclose(auc(torch.tensor(positive), torch.tensor(negative)), naive, abs_tol=1e-9)


def perfect(corpus: Corpus) -> Embedded:
    """Return embeddings in which every caption lies on its picture, and all are orthogonal."""
    identity = torch.eye(len(corpus))
    return Embedded(corpus=corpus, image_NE=identity, text_NE={"en": identity, "zh": identity})


def test_perfect_embeddings_have_perfect_measures(shapes: Corpus) -> None:
    embedded = perfect(shapes)
    assert retrieval_metrics("train", embedded)["train_zh_i2t_r1"] == 1.0
    assert similarity_auc("train", embedded)["train_en_similarity_auc"] == 1.0
    assert gap_metrics("train", embedded) == dict.fromkeys(gap_metrics("train", embedded), 0.0)


def test_recall_counts_what_is_nearer(shapes: Corpus) -> None:
    similarity = torch.tensor([[0.9, 0.1, 0.2], [0.8, 0.7, 0.1], [0.5, 0.4, 0.3]])
    assert recall(similarity, (1, 2, 3)) == {1: 0.3333, 2: 0.6667, 3: 1.0}


def test_a_shifted_modality_shows_as_gap(shapes: Corpus) -> None:
    image = functional.normalize(torch.randn(len(shapes), 8), dim=-1)
    embedded = Embedded(corpus=shapes, image_NE=image, text_NE={"en": image + torch.tensor([0.5] + [0.0] * 7)})
    assert gap_metrics("t", embedded)["t_en_modality_gap"] == pytest.approx(0.5, abs=1e-4)
    assert gap_metrics("t", embedded)["t_en_alignment"] == pytest.approx(0.25, abs=1e-4)


def test_the_nearest_class_wins_and_ties_count() -> None:
    image, classes = torch.eye(3), torch.eye(3)
    assert accuracy(image, classes, [0, 1, 2], (1,)) == [1.0]
    assert accuracy(image, classes, [1, 1, 1], (1, 2)) == [0.3333, 1.0]


def test_a_probe_reads_what_is_there_and_not_what_is_not() -> None:
    draw = random.Random(0)
    values = [draw.choice("abc") for _ in range(300)]
    told = torch.stack([torch.eye(3)["abc".index(value)] for value in values]) + 0.05 * torch.randn(300, 3)
    assert probe(told, values)[0] == 1.0
    blind, majority = probe(torch.randn(300, 3), values)
    assert blind < majority + 0.15


def test_attributes_with_too_few_pictures_are_left_out(shapes: Corpus) -> None:
    assert set(probe_metrics("t", perfect(shapes))) == {"t_probe_style", "t_probe_style_majority"}


def test_robustness_compares_the_concepts_that_both_show(shapes: Corpus) -> None:
    easy = perfect(shapes)
    broken = Embedded(corpus=shapes, image_NE=easy.image_NE.roll(1, 0), text_NE={"en": torch.eye(len(shapes))})
    assert robustness_metrics(easy, easy)["train_en_r5_kept"] == 1.0
    # Every caption is orthogonal to its picture and to most others: many ties with the right one, one better.
    assert robustness_metrics(easy, broken)["train_en_r5_shared"] <= 1.0


def test_wrong_partners_show_something_else(shapes: Corpus) -> None:
    records = list(shapes.records)
    for row, partner in enumerate(wrong_partners(records, "en")):
        assert records[row]["captions"]["en"] != records[partner]["captions"]["en"]
        assert records[row]["id"] != records[partner]["id"]
    alike = [{"id": "a", "captions": {"en": "a"}}] * 3
    assert wrong_partners(alike, "en") == [-1, -1, -1]


def test_right_answers_are_counted() -> None:
    questions = [Question(position=0, text="?", answer=answer) for answer in "aab"]
    assert share_right(questions, ["a", "b", "b"]) == 0.6667


@pytest.fixture(scope="module")
def tokenizer(shapes: Corpus) -> Tokenizer:
    return learn(corpus_texts(shapes), 400, 12)


@pytest.fixture
def fusing(tiny_config: ModelConfig, tokenizer: Tokenizer) -> VisionLanguageModel:
    text = tiny_config.text.model_copy(update={"vocab_size": tokenizer.get_vocab_size()})
    config = tiny_config.model_copy(
        update={"topology": "fusion", "fusion": FusionConfig(num_layers=1, num_heads=2), "text": text}
    )
    return VisionLanguageModel(config).eval()


def test_a_model_that_knows_nothing_is_as_perplexed_as_its_vocabulary_is_large(
    shapes: Corpus, fusing: VisionLanguageModel, tokenizer: Tokenizer
) -> None:
    with torch.no_grad():
        fusing.text.embedding.weight.zero_()
        fusing.language_head.bias_V.zero_()
    perplexity, exact = caption_scores(shapes, "en", fusing, tokenizer)
    assert perplexity == pytest.approx(tokenizer.get_vocab_size(), rel=1e-3)
    assert exact == 0.0


def test_greedy_decoding_takes_the_likeliest_word_each_time(
    shapes: Corpus, fusing: VisionLanguageModel, tokenizer: Tokenizer
) -> None:
    pixels = torch.rand(3, 3, 64, 64)
    written = decode_greedily(fusing, pixels, encode(tokenizer, ["", "", ""])[:, :1], 6)
    again = next_words(fusing, pixels, written).clone()
    again[..., 0] = float("-inf")
    assert torch.equal(again[:, :-1].argmax(-1), written[:, 1:])


def test_an_end_token_is_put_behind_texts_where_there_is_one(tokenizer: Tokenizer) -> None:
    plain = targets(tokenizer, ["red circle", "red"])
    assert torch.equal(plain, encode(tokenizer, ["red circle", "red"], trim=True))
    other = Tokenizer.from_str(tokenizer.to_str())
    other.add_special_tokens(["<end>"])
    end = other.token_to_id("<end>")
    ended = targets(other, ["red circle", "red"])
    assert [(row == end).sum().item() for row in ended] == [1, 1]
    assert all(row[(row != 0).sum() - 1] == end for row in ended)


def test_matching_is_a_coin_toss_for_a_head_that_says_the_same_of_all(
    shapes: Corpus, fusing: VisionLanguageModel, tokenizer: Tokenizer
) -> None:
    assert fuses(fusing)
    with torch.no_grad():
        fusing.match_head.weight.zero_()
    assert match_auc(shapes, "en", fusing, tokenizer) == 0.5
