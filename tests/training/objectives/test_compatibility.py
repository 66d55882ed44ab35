"""The compatibility loss pulls towards the parent, and only the child moves."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from belvedere_training.objectives.compatibility import compatibility_loss


def test_equal_embeddings_cost_nothing_and_opposite_ones_two() -> None:
    rows = functional.normalize(torch.randn(4, 8), dim=-1)
    assert compatibility_loss(rows, rows).item() == pytest.approx(0, abs=1e-6)
    assert compatibility_loss(-rows, rows).item() == pytest.approx(2, abs=1e-6)


def test_distance_within_the_slack_is_free() -> None:
    parent = torch.tensor([[1.0, 0.0]])
    child = functional.normalize(torch.tensor([[0.99, 0.1]]), dim=-1)
    assert compatibility_loss(child, parent, slack=0.05).item() == 0


def test_no_gradient_reaches_the_parent() -> None:
    child, parent = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    compatibility_loss(child, parent).backward()  # type: ignore[no-untyped-call]
    assert parent.grad is None
    assert child.grad is not None
