"""Quantisers: brute force finds the same code, every grid point has a number, hierarchies come nearer level by level."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from belvedere_training.model.quantize import FiniteScalarQuantiser, ResidualQuantiser, VectorQuantiser, nearest


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 40), codes=st.integers(1, 30), width=st.integers(1, 6), seed=st.integers(0, 999))
def test_the_search_finds_what_brute_force_finds(rows: int, codes: int, width: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    z, code = torch.randn(rows, width, generator=generator), torch.randn(codes, width, generator=generator)
    distance = (z[:, None] - code[None]).square().sum(-1)
    found = distance.gather(1, nearest(z, code)[:, None])[:, 0]
    torch.testing.assert_close(found, distance.min(1).values)


def test_the_gradient_passes_straight_through() -> None:
    z = torch.randn(2, 3, 5, requires_grad=True)
    pull = torch.randn(2, 3, 5)
    (FiniteScalarQuantiser().eval()(z).codes_BND * pull).sum().backward()
    assert z.grad is not None
    assert bool((z.grad.sign() == pull.sign()).all()), "as the squashing function turns it, and no zero by rounding"


def test_the_default_grid_has_exactly_16384_codes() -> None:
    assert FiniteScalarQuantiser().num_codes == 16384
    assert FiniteScalarQuantiser((8, 8, 8, 6, 5)).num_codes == 15360, "the recipe of the paper for 2^14"


def test_every_number_of_a_grid_comes_back() -> None:
    quantiser = FiniteScalarQuantiser((4, 3, 5))
    index = torch.arange(60)[None]
    points = quantiser.lookup(index)
    assert len({tuple(point) for point in points[0].tolist()}) == 60
    spread = torch.tensor(list(itertools.product((-3.0, -0.3, 0.3, 3.0), repeat=3)))[None]
    found = quantiser(spread)
    torch.testing.assert_close(quantiser.lookup(found.index_BN), found.codes_BND)


def test_noise_uses_nearly_all_codes_of_a_grid() -> None:
    quantiser = FiniteScalarQuantiser((8, 5, 5))
    index = quantiser(torch.randn(1, 20000, 3, generator=torch.Generator().manual_seed(0)) * 2).index_BN
    assert len(torch.unique(index)) > 0.95 * 200


@pytest.mark.parametrize("sphere", [True, False])
def test_numbers_give_the_codes_back(sphere: bool) -> None:
    quantiser = VectorQuantiser(32, 4, sphere=sphere).eval()
    found = quantiser(torch.randn(2, 7, 4))
    torch.testing.assert_close(quantiser.lookup(found.index_BN), found.codes_BND)


def test_learning_draws_codes_to_the_vectors() -> None:
    torch.manual_seed(0)
    quantiser = VectorQuantiser(8, 4)
    z = torch.nn.functional.normalize(torch.randn(1, 8, 4), dim=-1)
    optimizer = torch.optim.Adam(quantiser.parameters(), lr=0.05)
    losses = []
    for _ in range(80):
        optimizer.zero_grad()
        loss = quantiser(z).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


def test_codes_that_nobody_uses_move_to_the_batch() -> None:
    torch.manual_seed(0)
    quantiser = VectorQuantiser(64, 4)
    z = torch.randn(1, 256, 4)
    quantiser.code_KD.data[:] = quantiser.code_KD.data[:1] + 1e-3 * torch.randn(64, 4)  # all at one place
    quantiser.usage_K[1:] = 0.0
    before = len(torch.unique(quantiser.eval()(z).index_BN))
    quantiser.train()(z)
    assert len(torch.unique(quantiser.eval()(z).index_BN)) > max(16, before)


def test_each_level_of_a_hierarchy_comes_nearer() -> None:
    torch.manual_seed(0)
    quantiser = ResidualQuantiser(16, 3, 3)
    z = torch.randn(1, 64, 3)
    optimizer = torch.optim.Adam(quantiser.parameters(), lr=0.03)
    for _ in range(60):
        optimizer.zero_grad()
        quantiser(z).loss.backward()
        optimizer.step()
    index = quantiser.eval()(z).index_BN
    assert index.shape == (1, 64, 3)
    errors = [float((quantiser.lookup(index[..., :level]) - z).square().mean().detach()) for level in (1, 2, 3)]
    assert errors[0] > 1.5 * errors[1] > 1.5 * 1.5 * errors[2]
