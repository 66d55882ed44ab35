"""GradCache: the gradient of the whole batch from chunks, dropout and running statistics included."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from belvedere_training.gradcache import Embedded, cached_backward, chunks
from belvedere_training.model.config import ConvConfig, ModelConfig, TextConfig, VitConfig
from belvedere_training.model.vision_language import VisionLanguageModel
from belvedere_training.objectives.contrastive import contrastive_loss

ROWS = 12


def model_of(kind: str, dropout: float) -> VisionLanguageModel:
    torch.manual_seed(0)
    vision = (
        VitConfig(image_size=32, patch_size=8, hidden_size=16, num_layers=1, num_heads=2)
        if kind == "vit"
        else ConvConfig(image_size=32, stem_width=8, widths=(8,), blocks=(1,), pooled_width=16)
    )
    text = TextConfig(vocab_size=300, hidden_size=16, num_layers=2, num_heads=2, max_length=8, dropout=dropout)
    return VisionLanguageModel(ModelConfig(embed_dim=16, vision=vision, text=text)).train()


PIXELS = torch.randn(ROWS, 3, 32, 32, generator=torch.Generator().manual_seed(1))
TOKENS = torch.randint(1, 300, (ROWS, 6), generator=torch.Generator().manual_seed(2))


def inputs(model: VisionLanguageModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Return pixels and tokens where the model is."""
    return PIXELS.to(model.log_scale.device), TOKENS.to(model.log_scale.device)


def gradient(model: VisionLanguageModel) -> torch.Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])


def embedded_in_chunks(model: VisionLanguageModel, size: int) -> torch.Tensor:
    """Return the gradient of the loss over all rows, where each chunk draws its own dropout once."""
    torch.manual_seed(7)
    pixels, tokens = inputs(model)
    parts = [model(pixels[rows], tokens[rows]) for rows in chunks(ROWS, size)]
    loss = contrastive_loss(torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts]), parts[0][2])
    loss.backward()  # type: ignore[no-untyped-call]
    return gradient(model)


def cached(model: VisionLanguageModel, size: int) -> torch.Tensor:
    torch.manual_seed(7)
    pixels, tokens = inputs(model)

    def embed(rows: slice, last: bool) -> Embedded:
        return Embedded(*model(pixels[rows], tokens[rows]))

    cached_backward(embed, contrastive_loss, chunks(ROWS, size), model)
    return gradient(model)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("size", [4, 5])
def test_the_gradient_is_that_of_the_whole_batch(size: int, dropout: float, device: str) -> None:
    models = (model_of("vit", dropout).to(device) for _ in range(2))
    whole, found = embedded_in_chunks(next(models), size), cached(next(models), size)
    assert float((found - whole).norm() / whole.norm()) < 1e-5


def test_accumulating_the_chunks_own_losses_is_not_it() -> None:
    model = model_of("vit", 0.0)
    for rows in chunks(ROWS, 4):
        (contrastive_loss(*model(PIXELS[rows], TOKENS[rows])) / 3).backward()
    whole = embedded_in_chunks(model_of("vit", 0.0), 4)
    assert float((gradient(model) - whole).norm() / whole.norm()) > 0.1


def test_running_statistics_count_each_chunk_once() -> None:
    once, twice = model_of("conv", 0.0), model_of("conv", 0.0)
    embedded_in_chunks(once, 4)
    cached(twice, 4)
    for (name, expected), found in zip(once.named_buffers(), dict(twice.named_buffers()).values(), strict=True):
        if "num_batches" not in name:
            torch.testing.assert_close(found, expected)


def test_what_is_drawn_afterwards_does_not_depend_on_the_replay() -> None:
    model = model_of("vit", 0.2)
    cached(model, 4)
    first = torch.rand(1)
    embedded_in_chunks(model, 4)
    assert torch.equal(torch.rand(1), first)


@given(count=st.integers(1, 50), size=st.integers(1, 60))
@settings(max_examples=30, deadline=None)
def test_chunks_cover_every_row_once(count: int, size: int) -> None:
    covered = [row for rows in chunks(count, size) for row in range(rows.start, rows.stop)]
    assert covered == list(range(count))
