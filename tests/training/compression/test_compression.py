"""Every way of compressing: what it promises of size, of answers, and of what is trained afterwards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from torch import nn

from belvedere_platform.artifacts import ArtifactKind, ArtifactStore
from belvedere_platform.errors import InvalidInput
from belvedere_training.commands.compress import compress
from belvedere_training.compression.distill import relation_loss
from belvedere_training.compression.int8 import (
    FakeInt8Layer,
    Int8Layer,
    prepared_for_training,
    quantized_weight,
    range_of,
    to_int8,
    trained_to_int8,
    with_folded_norms,
)
from belvedere_training.compression.measure import size_of
from belvedere_training.compression.prune import Masks, without_channels
from belvedere_training.compression.run import CompressOptions, batches, compressed
from belvedere_training.data.corpus import Corpus, corpus_texts
from belvedere_training.model.config import SIZES, ModelConfig
from belvedere_training.model.files import LoadedModel, load_artifact, save
from belvedere_training.model.tokenizer import learn
from belvedere_training.model.vision_language import VisionLanguageModel


@pytest.fixture(scope="module")
def tokenizer(shapes: Corpus) -> Tokenizer:
    return learn(corpus_texts(shapes), 400, 12)


@pytest.fixture
def loaded(tiny_config: ModelConfig, tokenizer: Tokenizer) -> LoadedModel:
    text = tiny_config.text.model_copy(update={"vocab_size": tokenizer.get_vocab_size()})
    model = VisionLanguageModel(tiny_config.model_copy(update={"text": text}))
    with torch.no_grad():
        model.text.embedding.weight.mul_(100)
        model(torch.randn(16, 3, 64, 64), torch.randint(1, 300, (16, 12)))  # batch norms see something
    return LoadedModel(model=model.eval(), tokenizer=tokenizer)


PIXELS, TOKENS = torch.randn(6, 3, 64, 64), torch.randint(2, 300, (6, 12))


def cosines(one: nn.Module, other: nn.Module) -> torch.Tensor:
    """Return how alike two models' embeddings are, the least of pictures and texts."""
    with torch.no_grad():
        (image, text, _), (other_image, other_text, _) = one(PIXELS, TOKENS), other(PIXELS, TOKENS)
    return torch.minimum((image * other_image).sum(-1).min(), (text * other_text).sum(-1).min())


def test_the_smallest_weights_go_and_stay_away(loaded: LoadedModel) -> None:
    model = loaded.model
    before = torch.cat([m.weight.detach().flatten() for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))])
    masks = Masks(model, 0.6)
    masks.apply()
    after = torch.cat([m.weight.detach().flatten() for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))])
    assert masks.share == pytest.approx(0.6, abs=0.01)
    assert before[after == 0].abs().max() <= before[after != 0].abs().min()
    assert size_of(model)[1] < size_of(model)[0] * 0.8


def test_pruned_weights_stay_nothing_through_training(loaded: LoadedModel, shapes: Corpus) -> None:
    options = CompressOptions(way="prune", share=0.5, pairs=32, batch_size=16)
    model = compressed(loaded, shapes, options)
    assert Masks(model, 0.49).share >= 0.49
    zero = sum(int((m.weight == 0).sum()) for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d)))
    total = sum(m.weight.numel() for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d)))
    assert zero / total == pytest.approx(0.5, abs=0.02)


def test_channels_that_do_nothing_can_go_without_a_trace(loaded: LoadedModel) -> None:
    model = loaded.model
    layer = model.text.layers[0].mlp
    block = next(module for module in model.modules() if hasattr(module, "shortcut"))
    with torch.no_grad():
        layer[2].weight[:, ::2] = 0  # half of the hidden units reach nothing
    smaller = without_channels(model, 0.5)
    assert smaller.text.layers[0].mlp[0].out_features == layer[0].out_features // 2
    with torch.no_grad():
        torch.testing.assert_close(smaller.embed_text(TOKENS), model.embed_text(TOKENS), atol=1e-5, rtol=1e-4)
    assert smaller.embed_image(PIXELS).shape == model.embed_image(PIXELS).shape
    assert size_of(smaller)[0] < size_of(model)[0]
    assert block.first[0].out_channels == 8, "the original is left as it was"


def test_folding_batch_norms_changes_nothing(loaded: LoadedModel) -> None:
    assert cosines(loaded.model, with_folded_norms(loaded.model)) > 1 - 1e-5


@settings(max_examples=50, deadline=None)
@given(st.floats(-50, 50), st.floats(0, 100))
def test_a_range_covers_its_ends_and_has_nothing_exactly(low: float, width: float) -> None:
    found = range_of(low, low + width)
    assert 0 <= found.zero_point <= 127
    lowest, highest = (0 - found.zero_point) * found.scale, (127 - found.zero_point) * found.scale
    assert lowest <= min(low, 0) + found.scale
    assert highest >= max(low + width, 0) - found.scale


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([(5, 7), (4, 3, 3, 3)]))
def test_weights_are_off_by_at_most_half_a_step(seed: int, shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    whole, scale = quantized_weight(weight)
    step = scale.reshape(-1, *[1] * (len(shape) - 1))
    assert ((whole * step - weight).abs() <= step / 2 + 1e-6).all()


@pytest.mark.parametrize("bias", [True, False])
def test_integer_layers_compute_what_rounded_floats_would(bias: bool) -> None:
    for layer, x in (
        (nn.Linear(24, 10, bias=bias), torch.randn(5, 7, 24)),
        (nn.Conv2d(6, 10, 3, 2, 1, bias=bias), torch.randn(4, 6, 12, 12)),
    ):
        fake = FakeInt8Layer(layer).train()
        expected = fake(x).detach()
        torch.testing.assert_close(Int8Layer(layer, fake.range)(x), expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_int8_says_nearly_the_same_with_a_quarter_of_the_bytes(loaded: LoadedModel, mode: str) -> None:
    small = to_int8(loaded.model, mode, [(PIXELS, TOKENS)])  # type: ignore[arg-type]
    assert any(isinstance(module, Int8Layer) for module in small.modules())
    assert cosines(loaded.model, small) > 0.98
    kept = sum(p.numel() for n, p in loaded.model.named_parameters() if "embedding" in n or "position" in n) * 4
    assert size_of(small)[0] - kept < 0.45 * (size_of(loaded.model)[0] - kept)


def test_rounding_lets_gradients_through_and_its_ranges_are_kept(loaded: LoadedModel, shapes: Corpus) -> None:
    rounding = prepared_for_training(loaded.model).train()
    image, text, scale = rounding(PIXELS, TOKENS)
    (scale * (image * text).sum()).backward()
    weights = [module.layer.weight for module in rounding.modules() if isinstance(module, FakeInt8Layer)]
    assert all(weight.grad is not None for weight in weights)
    done = trained_to_int8(rounding.eval())
    assert cosines(rounding, done) > 0.99


def test_a_student_that_agrees_has_nothing_to_learn() -> None:
    image, text = (nn.functional.normalize(torch.randn(5, 8), dim=-1) for _ in range(2))
    scale = torch.tensor(10.0)
    assert relation_loss(image, text, scale, image, text, scale).item() == pytest.approx(0, abs=1e-6)
    assert relation_loss(image, text, scale, image.flip(0), text, scale) > 0.1


def test_relations_do_not_care_for_rotations() -> None:
    image, text = (nn.functional.normalize(torch.randn(5, 8), dim=-1) for _ in range(2))
    turn, _ = torch.linalg.qr(torch.randn(8, 8))
    scale = torch.tensor(10.0)
    assert relation_loss(image @ turn, text @ turn, scale, image, text, scale).item() == pytest.approx(0, abs=1e-4)


def test_distillation_makes_a_model_of_the_size_asked(loaded: LoadedModel, shapes: Corpus, tiny: ModelConfig) -> None:
    student = compressed(loaded, shapes, CompressOptions(way="distil", pairs=32, batch_size=16))
    assert student.config.vision == SIZES["nano"].vision
    assert student.config.text.vocab_size == loaded.tokenizer.get_vocab_size()


def test_the_same_batches_come_each_time(loaded: LoadedModel, shapes: Corpus) -> None:
    options = CompressOptions(way="int8-static", batch_size=4)
    one, other = (list(batches(loaded, shapes, options, 2)) for _ in range(2))
    assert [batch.pairs for batch in one] == [batch.pairs for batch in other]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--way", "int8-static", "--tag", "models/x"], "--tag publishes one of prune and distil"),
        (["--way", "distil"], "--pairs is 0, and distil is made by training"),
        (["--way", "prune", "--pairs", "3"], "--pairs is 3, less than a batch of 128"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_read(words: list[str], message: str, tmp_path: Path) -> None:
    arguments = ["models/none", "--data", "none", *words, "--artifacts", tmp_path.as_uri()]
    result = CliRunner().invoke(compress, arguments)
    assert isinstance(result.exception, InvalidInput)
    assert message in str(result.exception)


def test_the_command_measures_and_publishes(loaded: LoadedModel, store: ArtifactStore, tmp_path: Path) -> None:
    config = {"model": "shapes", "lineage": {}}
    files = {**save(loaded.model, loaded.tokenizer, tmp_path), "parity.jsonl": b"{}\n"}
    source = store.push(ArtifactKind.MODEL, files, config=config, tag="models/tiny")
    words = ["models/tiny", "--data", "shapes", "--split", "hard_style", "--artifacts", store.url]
    result = CliRunner().invoke(compress, [*words, "--way", "int8-dynamic", "--way", "channels", "-o", "json"])
    assert result.exit_code == 0, result.output
    names = [one["name"] for one in json.loads(result.stdout)]
    assert names == ["original", "int8-dynamic", "channels"]
    result = CliRunner().invoke(compress, [*words, "--way", "prune", "--share", "0.3", "--tag", "models/pruned"])
    assert result.exit_code == 0, result.output
    assert store.config("models/pruned")["lineage"]["parentDigest"] == source.digest
    assert Masks(load_artifact(store, "models/pruned").model, 0.29).share >= 0.29
