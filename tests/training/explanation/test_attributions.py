"""Attributions add up, find what a rigged model looks at, and are the same for the same seed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from belvedere_platform.artifacts import ArtifactKind, ArtifactStore
from belvedere_platform.errors import InvalidInput
from belvedere_training.commands.attribute import attribute as command
from belvedere_training.data.corpus import Corpus, corpus_texts
from belvedere_training.explanation.faithfulness import BLOCKS, deletion, deletion_curve
from belvedere_training.explanation.methods import METHODS, Method, attribute
from belvedere_training.explanation.regression import WeightedRidge
from belvedere_training.explanation.score import Pair, Similarity, pair_of
from belvedere_training.model.config import ModelConfig
from belvedere_training.model.files import save
from belvedere_training.model.tokenizer import encode, learn
from belvedere_training.model.vision_language import VisionLanguageModel

pytest.importorskip("captum")


@pytest.fixture(scope="module")
def tokenizer(shapes: Corpus) -> Tokenizer:
    return learn(corpus_texts(shapes), 400, 12)


@pytest.fixture
def model(tiny_config: ModelConfig, tokenizer: Tokenizer) -> VisionLanguageModel:
    text = tiny_config.text.model_copy(update={"vocab_size": tokenizer.get_vocab_size()})
    model = VisionLanguageModel(tiny_config.model_copy(update={"text": text})).eval()
    with torch.no_grad():
        model.text.embedding.weight.mul_(100)  # new embeddings are so small that words would hardly count
    return model


@pytest.fixture
def pair(model: VisionLanguageModel, tokenizer: Tokenizer, shapes: Corpus) -> Pair:
    return pair_of(model, tokenizer, shapes.pixels([0])[0], shapes.records[0]["captions"]["en"])


def test_the_score_is_the_models_similarity(
    model: VisionLanguageModel, tokenizer: Tokenizer, pair: Pair, shapes: Corpus
) -> None:
    tokens = encode(tokenizer, [shapes.records[0]["captions"]["en"]])
    expected = (model.embed_image(pair.pixels_13SS) * model.embed_text(tokens)).sum(-1)
    torch.testing.assert_close(Similarity(model)(pair.pixels_13SS, pair.embedded_1TD, pair.valid_1T), expected)


def test_integrated_gradients_are_complete(model: VisionLanguageModel, pair: Pair) -> None:
    found = attribute(model, pair)
    assert found.completeness_error < 0.01
    assert found.word_values[0] == 0.0, "the start token is the same in the empty text"
    assert any(abs(value) > 1e-4 for value in found.word_values)


def test_kernel_shap_adds_up_to_what_was_gained(model: VisionLanguageModel, pair: Pair) -> None:
    assert attribute(model, pair, "kernel-shap", samples=256).completeness_error < 0.05


@pytest.mark.parametrize("method", METHODS[1:])
def test_the_same_seed_gives_the_same_attribution(model: VisionLanguageModel, pair: Pair, method: Method) -> None:
    one, other = (attribute(model, pair, method, samples=64) for _ in range(2))
    assert torch.equal(one.pixels_SS, other.pixels_SS)
    assert one.word_values == other.word_values


def test_a_model_that_learns_goes_on_learning_afterwards(model: VisionLanguageModel, pair: Pair) -> None:
    model.requires_grad_(True).train()
    model.log_scale.requires_grad_(False)
    attribute(model, pair)
    assert model.training
    assert [name for name, weight in model.named_parameters() if not weight.requires_grad] == ["log_scale"]


class Corner(torch.nn.Module):
    """A vision tower that sees nothing but the mean of the upper left eighth."""

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels[:, :, :16, :16].mean((1, 2, 3), keepdim=True)[:, 0, 0]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_finds_the_only_place_that_is_looked_at(
    model: VisionLanguageModel, pair: Pair, method: Method, monkeypatch: pytest.MonkeyPatch
) -> None:
    direction = torch.nn.functional.normalize(torch.randn(16), dim=0)
    look = Corner().encode
    monkeypatch.setattr(model, "embed_image", lambda pixels: look(pixels) * direction)
    monkeypatch.setattr(model, "project_text", lambda text: -direction + 0 * text.pooled_BD.sum())
    dark = Pair(
        pixels_13SS=-torch.ones_like(pair.pixels_13SS),
        embedded_1TD=pair.embedded_1TD,
        valid_1T=pair.valid_1T,
        white_311=pair.white_311,
        words=pair.words,
        start=1,
    )
    found = attribute(model, dark, method, samples=512)
    blocks = found.blocks()
    inside, outside = blocks[:2, :2], blocks.clone()
    outside[:2, :2] = 0
    assert inside.min() > 4 * outside.abs().max()
    result = deletion(model, dark, found)
    assert result.top_drop > 4 * result.random_drop
    curve = deletion_curve(model, dark, found)
    assert len(curve) == BLOCKS**2 + 1
    assert curve[4] == pytest.approx(curve[-1], abs=1e-4)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10_000), st.integers(1, 6))
def test_weighted_ridge_finds_the_line(seed: int, num_features: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(60, num_features, generator=generator)
    coefficients = torch.randn(num_features, generator=generator)
    weight = torch.rand(60, generator=generator) + 0.1
    ridge = WeightedRidge(1e-9)
    ridge.fit([(x[:20], x[:20] @ coefficients + 2, weight[:20]), (x[20:], x[20:] @ coefficients + 2, weight[20:])])
    torch.testing.assert_close(ridge.representation()[0], coefficients, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(ridge(x).float(), x @ coefficients + 2, atol=1e-3, rtol=1e-3)


def test_an_unknown_method_is_answered_with_those_there_are(model: VisionLanguageModel, pair: Pair) -> None:
    with pytest.raises(InvalidInput, match="'magic'; allowed are integrated-gradients, lime"):
        attribute(model, pair, "magic")  # type: ignore[arg-type]


def test_the_command_draws_and_measures(
    model: VisionLanguageModel, tokenizer: Tokenizer, store: ArtifactStore, tmp_path: Path
) -> None:
    store.push(ArtifactKind.MODEL, dict(save(model, tokenizer, tmp_path)), config={}, tag="models/tiny")
    words = ["models/tiny", "--data", "shapes", "--count", "2", "--samples", "64", "--report", str(tmp_path / "out")]
    methods = ["--method", "integrated-gradients", "--method", "lime"]
    result = CliRunner().invoke(command, [*words, *methods, "--artifacts", store.url])
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("METHOD")
    assert len(list((tmp_path / "out").glob("pair-*.png"))) == 2
    assert (tmp_path / "out" / "summary-lime.png").read_bytes().startswith(b"\x89PNG")
    document = json.loads((tmp_path / "out" / "attributions.json").read_text())
    assert set(document["measures"]) == {"integrated-gradients", "lime"}
    assert [len(pair["attributions"]) for pair in document["pairs"]] == [2, 2]


def test_one_kind_of_pair_is_asked_for(
    store: ArtifactStore, model: VisionLanguageModel, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    store.push(ArtifactKind.MODEL, dict(save(model, tokenizer, tmp_path)), config={}, tag="models/tiny")
    result = CliRunner().invoke(command, ["models/tiny", "--text", "x", "--artifacts", store.url])
    assert "give either --image FILE with --text TEXT, or --data REF" in str(result.exception)
