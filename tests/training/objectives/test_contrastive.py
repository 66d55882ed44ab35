"""The contrastive loss: its value where it is known, its symmetry, and which pairs it leaves out."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from belvedere_training.objectives.contrastive import alike, contrastive_loss


def unit(rows: int, width: int, seed: int) -> Tensor:
    return functional.normalize(torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)), dim=-1)


@pytest.mark.parametrize("smoothing", [0.0, 0.05])
def test_embeddings_that_are_all_equal_cost_the_logarithm_of_the_batch(smoothing: float) -> None:
    same_BE = functional.normalize(torch.ones(8, 4), dim=-1)
    loss = contrastive_loss(same_BE, same_BE, torch.tensor(20.0), label_smoothing=smoothing)
    assert loss.item() == pytest.approx(math.log(8), rel=1e-5)


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(2, 12), seed=st.integers(0, 1000), scale=st.floats(0.1, 100), smoothing=st.floats(0, 0.5))
def test_exchanging_the_modalities_changes_nothing(rows: int, seed: int, scale: float, smoothing: float) -> None:
    image_BE, text_BE, factor = unit(rows, 6, seed), unit(rows, 6, seed + 1), torch.tensor(scale)
    there = contrastive_loss(image_BE, text_BE, factor, label_smoothing=smoothing)
    back = contrastive_loss(text_BE, image_BE, factor, label_smoothing=smoothing)
    assert math.isfinite(there.item())
    assert there.item() == pytest.approx(back.item(), rel=1e-4, abs=1e-6)


def test_it_equals_the_formula_written_out() -> None:
    image_BE, text_BE, scale = unit(5, 6, 1), unit(5, 6, 2), 7.0
    expected = 0.0
    for a, b in ((image_BE, text_BE), (text_BE, image_BE)):
        for row in range(5):
            logits = [scale * float(a[row] @ b[column]) for column in range(5)]
            expected += (math.log(sum(map(math.exp, logits))) - logits[row]) / 10
    assert contrastive_loss(image_BE, text_BE, torch.tensor(scale)).item() == pytest.approx(expected, rel=1e-5)


def test_a_pair_with_the_same_text_is_no_negative() -> None:
    image_BE = unit(4, 6, 1)
    text_BE = unit(4, 6, 2)
    text_BE[1] = text_BE[0]
    same_GG = alike([0, 1, 2, 3], ["flag", "flag", "dog", "cat"])
    masked = contrastive_loss(image_BE, text_BE, torch.tensor(10.0), same_GG=same_GG, label_smoothing=0.05)
    plain = contrastive_loss(image_BE, text_BE, torch.tensor(10.0), label_smoothing=0.05)
    assert math.isfinite(masked.item())
    assert masked < plain


def test_without_equal_pairs_the_mask_changes_nothing() -> None:
    image_BE, text_BE = unit(6, 5, 3), unit(6, 5, 4)
    same_GG = alike(range(6), [str(n) for n in range(6)])  # type: ignore[arg-type]
    masked = contrastive_loss(image_BE, text_BE, torch.tensor(5.0), same_GG=same_GG, label_smoothing=0.1)
    plain = contrastive_loss(image_BE, text_BE, torch.tensor(5.0), label_smoothing=0.1)
    assert masked.item() == pytest.approx(plain.item(), rel=1e-5)


def test_alike_means_same_concept_or_same_text() -> None:
    same_GG = alike([1, 1, 2, 3], ["a", "b", "b", "c"])
    assert same_GG.int().tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 1]]


def test_when_every_pair_is_alike_the_loss_is_zero_and_gradients_are_finite() -> None:
    image_BE = unit(3, 4, 1).requires_grad_()
    same_GG = torch.ones(3, 3, dtype=torch.bool)
    loss = contrastive_loss(image_BE, unit(3, 4, 2), torch.tensor(9.0), same_GG=same_GG, label_smoothing=0.05)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert image_BE.grad is not None
    assert bool(image_BE.grad.isfinite().all())
