"""The schedule over pairs, and which optimizer gets which weight."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from belvedere_training.model.config import ModelConfig
from belvedere_training.model.dual import DualStream
from belvedere_training.optimizer import Optimizers, schedule


@given(pairs=st.integers(1, 100_000), warmup=st.integers(0, 50_000), budget=st.integers(1, 100_000))
def test_the_share_stays_between_nothing_and_all(pairs: int, warmup: int, budget: int) -> None:
    assert 0 < schedule(pairs, warmup, budget) <= 1


def test_it_rises_then_falls_and_ends_low() -> None:
    values = [schedule(pairs, 100, 1000) for pairs in range(10, 1001, 10)]
    peak = values.index(max(values))
    assert values[peak] == 1.0
    assert values[:peak] == sorted(values[:peak])
    assert values[peak:] == sorted(values[peak:], reverse=True)
    assert values[-1] < 0.01


def test_a_short_run_is_not_spent_on_warming_up() -> None:
    assert schedule(1_200, 20_000, 12_000) == 1.0


def test_every_weight_has_one_optimizer(tiny: ModelConfig) -> None:
    model = DualStream(tiny)
    optimizers = Optimizers(model, learning_rate=1e-3, weight_decay=0.05)
    groups = [group["params"] for part in optimizers.parts for group in part.param_groups]
    counted = [id(parameter) for group in groups for parameter in group]
    assert sorted(counted) == sorted(id(parameter) for parameter in model.parameters())
    matrices, embeddings, rest, numbers = groups
    assert all(parameter.ndim in (2, 4) for parameter in matrices)
    assert [id(p) for p in embeddings] == [id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)]
    assert all(parameter.ndim for parameter in rest)
    assert [id(p) for p in numbers] == [id(model.log_scale)]


def test_rates_follow_the_share(tiny: ModelConfig) -> None:
    optimizers = Optimizers(DualStream(tiny), learning_rate=1e-3, weight_decay=0.05)
    optimizers.set_rate(0.5)
    rates = [group["lr"] for part in optimizers.parts for group in part.param_groups]
    assert rates == [0.01, 0.005, 0.0005, 0.0005]


def test_a_model_without_a_single_number_has_one_optimizer_less() -> None:
    model = nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 2))
    assert len(Optimizers(model, learning_rate=1e-3, weight_decay=0.05).parts) == 2
