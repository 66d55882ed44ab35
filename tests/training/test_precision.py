"""The choice of number format and threads, from what was measured."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from belvedere_training.model.config import ModelConfig
from belvedere_training.model.dual import DualStream
from belvedere_training.precision import choose, pick


@pytest.mark.parametrize(
    ("rates", "chosen"),
    [
        ({"fp32": 300.0, "bf16": 460.0}, "bf16"),
        ({"fp32": 250.0, "bf16": 80.0}, "fp32"),
        ({"fp32": 300.0, "bf16": 310.0}, "fp32"),
        ({"fp32": 300.0}, "fp32"),
    ],
)
def test_bf16_must_be_clearly_faster(rates: dict[str, float], chosen: str) -> None:
    assert pick(rates) == chosen


def ticks(*lengths: float) -> Iterator[float]:
    """Yield the start and end of each step: four steps a candidate, of the length given for it."""
    now = 0.0
    for length in lengths:
        for _ in range(4):
            yield now
            now += length
            yield now


def test_the_fastest_format_and_number_of_threads_are_taken(tiny: ModelConfig) -> None:
    clock = ticks(0.5, 0.25, 2.0, 1.0, 1.0, 0.25)  # fp32, bf16 on few rows, then on more; one thread, two threads
    execution, report = choose(DualStream(tiny), "auto", (1, 2), torch.device("cpu"), lambda: next(clock))
    assert (execution.precision, execution.threads) == ("bf16", 2)
    assert report["fp32 x 1"] == 16.0


def test_a_format_without_hardware_for_it_is_given_up_after_a_few_rows(tiny: ModelConfig) -> None:
    clock = ticks(0.25, 4.0, 1.0)  # fp32, bf16 on few rows; then fp32 alone
    execution, report = choose(DualStream(tiny), "auto", (1,), torch.device("cpu"), lambda: next(clock))
    assert execution.precision == "fp32"
    assert report == {"fp32 x 1": 32.0, "bf16 x 1": 1.0}


@pytest.mark.parametrize("asked", ["fp32", "bf16", "fp16"])
def test_what_was_asked_is_not_compared(tiny: ModelConfig, asked: str) -> None:
    clock = ticks(1.0, 1.0, 0.25)  # one thread, for the report; one thread, two threads
    execution, report = choose(DualStream(tiny), asked, (1, 2), torch.device("cpu"), lambda: next(clock))
    assert (execution.precision, execution.threads) == (asked, 2)
    assert len(report) == 3


def test_nothing_is_measured_where_nothing_is_left_to_choose(tiny: ModelConfig) -> None:
    execution, report = choose(DualStream(tiny), "bf16", (1, 1), torch.device("cpu"), lambda: pytest.fail("measured"))
    assert (execution.precision, execution.threads, report) == ("bf16", 1, {})


def test_measuring_changes_neither_statistics_nor_gradients(tiny: ModelConfig) -> None:
    model = DualStream(tiny)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    choose(model, "fp32", (1, 2), torch.device("cpu"))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(parameter.grad is None for parameter in model.parameters())
