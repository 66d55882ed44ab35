"""The dual-stream encoder: its towers are blind to each other, its vectors are unit, padding has no effect."""

from __future__ import annotations

import math

import pytest
import torch

from belvedere_platform.errors import InvalidInput
from belvedere_training.model.config import SIZES, ModelConfig, sized
from belvedere_training.model.dual import DualStream, multiply_adds
from belvedere_training.model.text import PAD_ID
from belvedere_training.validation import parse


@pytest.fixture
def model(tiny: ModelConfig) -> DualStream:
    return DualStream(tiny).eval()


def test_each_modality_is_embedded_without_the_other(model: DualStream) -> None:
    pixels, tokens = torch.randn(3, 3, 64, 64), torch.randint(1, 400, (3, 6))
    image_BE, text_BE, _ = model(pixels, tokens)
    assert torch.equal(model(pixels, tokens.flip(0))[0], image_BE)
    assert torch.equal(model(pixels.flip(0), tokens)[1], text_BE)


def test_vectors_are_of_unit_length(model: DualStream) -> None:
    image_BE, text_BE, _ = model(torch.randn(4, 3, 64, 64), torch.randint(1, 400, (4, 6)))
    for rows in (image_BE, text_BE):
        torch.testing.assert_close(rows.norm(dim=-1), torch.ones(4))


def test_more_padding_gives_the_same_vector(model: DualStream) -> None:
    tokens = torch.tensor([[1, 7, 9], [1, 5, PAD_ID]])
    padded = torch.nn.functional.pad(tokens, (0, 8), value=PAD_ID)
    torch.testing.assert_close(model.embed_text(padded), model.embed_text(tokens), rtol=1e-5, atol=1e-6)


def test_a_row_of_padding_alone_is_finite_and_disturbs_nobody(model: DualStream) -> None:
    tokens = torch.tensor([[1, 7, 9], [PAD_ID] * 3])
    out = model.embed_text(tokens)
    assert bool(out.isfinite().all())
    torch.testing.assert_close(out[:1], model.embed_text(tokens[:1]))


def test_the_scale_is_clamped(model: DualStream) -> None:
    assert model.scale().item() == pytest.approx(1 / 0.07, rel=1e-4)
    with torch.no_grad():
        model.log_scale.fill_(9.0)
    assert model.scale().item() == pytest.approx(100, rel=1e-4)
    assert math.isfinite(model.scale().item())


def test_towers_offer_tokens_and_which_are_real(model: DualStream) -> None:
    picture = model.vision.encode(torch.randn(2, 3, 64, 64))
    assert picture.tokens_BTD.shape == (2, 64, model.vision.token_width)
    text = model.text.encode(torch.tensor([[1, 4, PAD_ID]]))
    assert text.valid_BT.tolist() == [[True, True, False]]


def test_nano_stays_within_its_budget() -> None:
    model = DualStream(SIZES["nano"])
    assert multiply_adds(model)["image"] <= 45_000_000
    assert model.training, "counting leaves the mode as it was"


def test_an_unknown_size_is_answered_with_those_there_are() -> None:
    with pytest.raises(InvalidInput, match="size is 'huge'; sizes are nano, small, base, large"):
        sized("huge")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"embedDims": 64}, "embedDims is not a known key; did you mean embedDim?"),
        ({"vision": {"stemWith": 8}}, "vision.stemWith is not a known key; did you mean stemWidth?"),
        ({"text": {"hiddenSize": 100, "numHeads": 3}}, "hiddenSize 100 must be a multiple of numHeads 3"),
        ({"vision": {"imageSize": 60}}, "imageSize 60 must be a multiple of 16"),
        ({"vision": {"blocks": [1]}}, "blocks has 1 entries and widths has 3"),
    ],
)
def test_a_wrong_setting_is_named(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse(ModelConfig, wrong, where="model.json")
    assert message in str(caught.value)
