"""Batches are shared out whole, by how fast workers are, and only when it is worth it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from belvedere_platform.artifacts import ArtifactStore
from belvedere_training.config import RunConfig, resolve
from belvedere_training.model.config import ModelConfig
from belvedere_training.recipe import prepare
from belvedere_training.split import Stopwatch, rebalanced, shares
from belvedere_training.world import LocalWorld

RATES = st.lists(st.floats(0.01, 100), min_size=1, max_size=9)


@given(RATES, st.integers(0, 500))
def test_shares_add_up_and_are_near_what_rates_say(rates: list[float], more: int) -> None:
    total = len(rates) + more
    counts = shares(total, rates)
    assert sum(counts) == total
    assert min(counts) >= 1
    for count, rate in zip(counts, rates, strict=True):
        assert count <= max(1, total * rate / sum(rates)) + 1


@given(st.lists(st.integers(1, 200), min_size=1, max_size=6), st.floats(0.1, 10))
def test_workers_that_take_equally_long_keep_their_rows(counts: list[int], second: float) -> None:
    assert rebalanced(counts, [second] * len(counts)) == tuple(counts)


def test_a_slow_worker_gets_less_and_small_differences_change_nothing() -> None:
    assert rebalanced((64, 64), (1.0, 3.0)) == (96, 32)
    assert rebalanced((96, 32), (1.5, 1.5)) == (96, 32)
    assert rebalanced((64, 64), (1.0, 1.1)) == (64, 64)
    assert rebalanced((64, 64), (0.0, 1.0)) == (64, 64)


def test_even_shares_of_what_cannot_be_shared_evenly() -> None:
    assert shares(10, [1.0, 1.0, 1.0]) == (4, 3, 3)


def test_only_the_forward_pass_is_timed() -> None:
    now = [0.0]

    class Slow(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            now[0] += 2.0
            return x

    module = Slow()
    watch = Stopwatch(module, clock=lambda: now[0])
    module(torch.ones(1))
    now[0] += 100
    module(torch.ones(1))
    assert watch.take() == 4.0
    assert watch.take() == 0.0


def test_a_share_of_the_batch_is_what_the_loader_makes(
    store: ArtifactStore, tiny: ModelConfig, run_config: Callable[..., RunConfig]
) -> None:
    loop = prepare(resolve(run_config(), store), store, LocalWorld(cores=1))
    stepper = loop.stepper
    whole = stepper.loader.batch(0)
    stepper.loader.take(slice(3, 8))
    part = stepper.loader.batch(0)
    assert torch.equal(part.pixels_B3SS, whole.pixels_B3SS[3:8])
    assert part.pairs == whole.pairs
    assert stepper.weight == 1.0
    assert loop.state()["counts"] == [16]


@pytest.mark.parametrize("split", ["Even", "Measured"])
def test_one_worker_does_the_same_either_way(
    store: ArtifactStore, tiny: ModelConfig, run_config: Callable[..., RunConfig], split: str
) -> None:
    config = resolve(run_config(pairs=48), store)
    workers = config.workers.model_copy(update={"split": split})
    loop = prepare(config.model_copy(update={"workers": workers}), store, LocalWorld(cores=1))
    loop.run()
    assert loop.stepper.counts == (16,)
