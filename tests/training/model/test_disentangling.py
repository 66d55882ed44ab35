"""Shared and specific parts: gradients that turn and are cut, subspaces that part, attributes that are found apart."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from belvedere_training.model.disentangling import (
    Disentangler,
    overlap,
    reversed_gradient,
    truncated_gradient,
    variance_floor,
)


def test_a_reversed_gradient_turns_round() -> None:
    x = torch.tensor([2.0], requires_grad=True)
    (3 * reversed_gradient(x, 0.5)).sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert x.grad.item() == pytest.approx(-1.5)


def test_a_truncated_gradient_is_bounded_a_row_and_keeps_its_direction() -> None:
    x = torch.randn(3, 4, requires_grad=True)
    pull = torch.tensor([[3.0, 4.0, 0.0, 0.0], [0.3, 0.4, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    (truncated_gradient(x, 1.0) * pull).sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    torch.testing.assert_close(x.grad[0], torch.tensor([0.6, 0.8, 0.0, 0.0]))
    assert torch.equal(x.grad[1:], pull[1:])


def test_equal_channels_overlap_and_independent_ones_do_not() -> None:
    x = torch.randn(2000, 1, generator=torch.Generator().manual_seed(0))
    other = torch.randn(2000, 1, generator=torch.Generator().manual_seed(1))
    assert overlap(x, -2 * x).item() == pytest.approx(1, abs=1e-4)
    assert overlap(x, other).item() < 0.01


def test_a_collapsed_embedding_pays_and_a_spread_one_does_not() -> None:
    assert variance_floor(torch.ones(8, 3)).item() == pytest.approx(0.99, abs=0.01)
    assert variance_floor(torch.tensor([[-3.0], [3.0]])).item() == 0


def test_each_part_knows_its_own_attribute_the_parts_are_orthogonal_and_the_adversary_is_at_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    mixing = torch.linalg.qr(torch.randn(10, 10, generator=generator))[0]
    model = Disentangler(10, 4, {"colour": 4, "shape": 3}, gradient_limit=10.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

    def batch() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        labels = {name: torch.randint(0, n, (128,), generator=generator) for name, n in (("colour", 4), ("shape", 3))}
        content = torch.randn(128, 3, generator=generator)
        parts = [functional.one_hot(labels["colour"], 4) * 2.0, functional.one_hot(labels["shape"], 3) * 2.0, content]
        return torch.cat(parts, 1) @ mixing, labels

    before = float(model.losses(*batch())["orthogonality"].detach())
    for _ in range(300):
        terms = model.losses(*batch())
        optimizer.zero_grad()
        (terms["attribute"] + 4 * terms["orthogonality"] + terms["adversary"] + terms["variance"]).backward()
        optimizer.step()
    rows, labels = batch()
    terms, parts = model.losses(rows, labels), model(rows)
    for name in labels:
        own = (model.classifiers[name](parts.specific[name]).argmax(1) == labels[name]).float().mean()
        assert own > 0.95
        adversary = (model.adversaries[name](parts.shared_BD).argmax(1) == labels[name]).float().mean()
        assert adversary < 1.5 / (4 if name == "colour" else 3)
    assert terms["orthogonality"] < before / 2
    assert parts.shared_BD.std(0).min() > 0.5
