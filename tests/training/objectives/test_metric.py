"""Losses on embeddings: known values, finite two-view contrast, margins, and which of them can learn retrieval."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from belvedere_training.objectives.metric import alignment_loss, cosine, squared_error_loss, triplet_loss, two_view_loss


def unit(rows: int, width: int, seed: int) -> Tensor:
    return functional.normalize(torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)), dim=-1)


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(2, 10), seed=st.integers(0, 999), temperature=st.floats(0.02, 5))
def test_the_two_view_loss_is_finite_and_positive(rows: int, seed: int, temperature: float) -> None:
    loss = two_view_loss(unit(rows, 6, seed), unit(rows, 6, seed + 1), temperature).item()
    assert math.isfinite(loss)
    assert loss > 0


def test_the_two_view_loss_is_the_formula_written_out() -> None:
    first, second = unit(3, 4, 0), unit(3, 4, 1)
    views = torch.cat([first, second])
    expected = 0.0
    for row in range(6):
        others = [math.exp(float(views[row] @ views[column]) / 0.1) for column in range(6) if column != row]
        positive = math.exp(float(views[row] @ views[(row + 3) % 6]) / 0.1)
        expected -= math.log(positive / sum(others)) / 6
    assert two_view_loss(first, second).item() == pytest.approx(expected, rel=1e-4)


def test_a_lower_temperature_gives_the_hardest_negative_a_larger_share_of_the_gradient() -> None:
    anchor = torch.tensor([[1.0, 0.0]])
    texts = functional.normalize(torch.tensor([[1.0, 0.1], [0.9, 0.3], [-1.0, 0.2]]), dim=-1)

    def share(temperature: float) -> float:
        own = texts.clone().requires_grad_()
        functional.cross_entropy(anchor @ own.T / temperature, torch.tensor([0])).backward()  # type: ignore[no-untyped-call]
        assert own.grad is not None
        size = own.grad.norm(dim=1)
        return float(size[1] / (size[1] + size[2]))

    assert share(0.05) > share(0.5) > share(5.0) > 0.5


def test_alignment_has_one_way_and_both_ways() -> None:
    image, text = unit(5, 6, 1), unit(5, 6, 2)
    logits = image @ text.T / 0.07
    there, back = (functional.cross_entropy(one, torch.arange(5)) for one in (logits, logits.T))
    torch.testing.assert_close(alignment_loss(3 * image, 2 * text, one_way=True), there)
    torch.testing.assert_close(alignment_loss(3 * image, 2 * text), (there + back) / 2)


def test_the_triplet_costs_what_is_missing_to_the_margin() -> None:
    anchor, near, far = torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    assert triplet_loss(anchor, near, far, margin=1.0).item() == 0
    assert triplet_loss(anchor, near, far, margin=4.0).item() == pytest.approx(1.0)
    assert triplet_loss(anchor, far, near, margin=0.0).item() == pytest.approx(3.0)


@given(seed=st.integers(0, 99))
@settings(max_examples=10, deadline=None)
def test_a_cosine_is_between_minus_one_and_one(seed: int) -> None:
    values = cosine(unit(6, 3, seed) * 1e3, unit(6, 3, seed + 1) * 1e-3)
    assert bool((values.abs() <= 1).all())


def test_embeddings_that_are_all_equal_are_the_best_for_squared_error_and_the_worst_for_contrast() -> None:
    """Why squared error alone collapses: nothing in it holds embeddings apart."""
    equal = functional.normalize(torch.ones(8, 4), dim=-1)
    assert squared_error_loss(equal, equal).item() == 0
    assert alignment_loss(equal, equal).item() == pytest.approx(math.log(8), rel=1e-5)


def test_squared_error_draws_embeddings_together_where_contrast_spreads_them() -> None:
    def spread_after(kind: str) -> float:
        torch.manual_seed(0)
        tower, rows = nn.Linear(8, 4), torch.randn(32, 8)
        optimizer = torch.optim.SGD(tower.parameters(), lr=0.5)
        for _ in range(60):
            image, text = tower(rows + 0.5 * torch.randn(32, 8)), tower(rows + 0.5 * torch.randn(32, 8))
            optimizer.zero_grad()
            (squared_error_loss if kind == "squared" else alignment_loss)(image, text).backward()
            optimizer.step()
        return float(tower(rows).detach().std(0).mean())

    assert spread_after("squared") < 0.2 * spread_after("alignment")
