"""Muon's update against a singular value decomposition, and its refusal of vectors."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from belvedere_training.muon import NEWTON_SCHULZ, Muon, orthogonalise


@pytest.mark.parametrize("shape", [(16, 16), (8, 64), (64, 8)])
def test_singular_values_come_near_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalise(matrix))
    assert values.min() > 0.3
    assert values.max() < 1.3


def test_wide_matrices_take_a_shorter_way_to_the_same_place() -> None:
    matrix = torch.randn(16, 80, generator=torch.Generator().manual_seed(2)).double()
    matrix = matrix * torch.logspace(0, -3, 16)[:, None]
    expected = matrix / (matrix.norm() + 1e-7)
    first, second, third = NEWTON_SCHULZ
    for _ in range(5):
        gram = expected @ expected.T
        expected = first * expected + (second * gram + third * gram @ gram) @ expected
    for found in (orthogonalise(matrix), orthogonalise(matrix.T).T):
        assert (found - expected).norm() < 1e-3 * expected.norm()


def test_the_update_keeps_the_singular_vectors() -> None:
    matrix = torch.randn(12, 20, generator=torch.Generator().manual_seed(1))
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    assert nn.functional.cosine_similarity(orthogonalise(matrix).flatten(), (left @ right).flatten(), dim=0) > 0.95


def test_a_convolution_is_updated_and_a_quadratic_falls() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 8, 3, bias=False)
    target = torch.randn_like(layer.weight)
    optimizer = Muon([layer.weight], lr=0.2, weight_decay=0.0)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = (layer.weight - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


def test_vectors_are_refused() -> None:
    with pytest.raises(ValueError, match="two dims or more"):
        Muon([nn.Parameter(torch.zeros(3))])
