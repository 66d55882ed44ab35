"""Pictures to tokens and back with shared weights: the error falls, and numbers alone give the picture."""

from __future__ import annotations

import pytest
import torch

from belvedere_training.model.visual_tokenizer import TokenizerConfig, VisualTokenizer, usage

SMALL = {"image_size": 16, "patch_size": 4, "hidden_size": 32, "num_layers": 1, "num_heads": 2, "num_codes": 64}


def tokenizer(**changes: object) -> VisualTokenizer:
    torch.manual_seed(0)
    return VisualTokenizer(TokenizerConfig.model_validate({**SMALL, **changes}))


@pytest.mark.parametrize("quantiser", ["vq", "fsq", "residual", "continuous"])
def test_the_reconstruction_learns(quantiser: str) -> None:
    model = tokenizer(quantiser=quantiser)
    rows = torch.linspace(-1, 1, 16)
    pixels = torch.stack([torch.outer(rows, rows), rows.expand(16, 16), rows[:, None].expand(16, 16)])[None]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    errors = []
    for _ in range(60):
        optimizer.zero_grad()
        out = model(pixels)
        out.loss.backward()
        optimizer.step()
        errors.append((out.pixels_B3SS - pixels).square().mean().item())
    assert errors[-1] < 0.5 * errors[0]
    assert out.z_BNC.shape[:2] == (1, 16)
    assert out.pixels_B3SS.shape == pixels.shape


@pytest.mark.parametrize(("quantiser", "shape"), [("vq", (2, 16)), ("fsq", (2, 16)), ("residual", (2, 16, 4))])
def test_numbers_alone_give_the_picture(quantiser: str, shape: tuple[int, ...]) -> None:
    model = tokenizer(quantiser=quantiser).eval()
    pixels = torch.randn(2, 3, 16, 16)
    numbers = model.tokens(pixels)
    assert numbers.shape == shape
    torch.testing.assert_close(model.picture(numbers), model(pixels).pixels_B3SS, rtol=1e-4, atol=1e-5)


def test_both_ways_share_every_matrix() -> None:
    model = tokenizer(quantiser="continuous")
    matrices = [name for name, weight in model.named_parameters() if weight.ndim == 2 and "layers" not in name]
    assert matrices == ["position_ND", "direction_2D", "patch.weight", "code.weight"]
    with torch.no_grad():
        before = model.decode(torch.ones(1, 16, 8))
        model.patch.weight.mul_(2)
    torch.testing.assert_close(model.decode(torch.ones(1, 16, 8)), 2 * before)


def test_usage_is_the_share_of_codes_that_occur() -> None:
    assert usage(torch.tensor([[0, 1, 1], [3, 0, 0]]), 4) == 0.75
