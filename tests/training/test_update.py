"""The update: its order, clipping by tower, float32 weights, and steps that overflow."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from belvedere_training.model.config import ModelConfig
from belvedere_training.model.vision_language import VisionLanguageModel
from belvedere_training.optimizer import Optimizers
from belvedere_training.precision import Execution
from belvedere_training.update import Update, clip_gradients, tower_of


def update_of(model: VisionLanguageModel, **changes: Any) -> Update:
    optimizer = Optimizers(model, learning_rate=1e-3, weight_decay=0.0)
    settings = {"clip": "global", "clip_norm": 1.0, "device": torch.device("cpu"), "fp16": False, **changes}
    return Update(model, optimizer, **settings)


def backward(model: VisionLanguageModel, factor: float = 1.0, precision: str = "fp32") -> None:
    with Execution(precision=precision, threads=1).autocast(torch.device("cpu")):
        image, text, scale = model(torch.randn(4, 3, 64, 64), torch.randint(1, 400, (4, 6)))
    (factor * scale * (image * text).sum()).backward()


def test_the_order_is_unscale_clip_step_update_forget(tiny: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    model = VisionLanguageModel(tiny)
    update, calls = update_of(model, fp16=True), []

    def record(owner: Any, name: str) -> None:
        original = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, **k: (calls.append(name), original(*a, **k))[1])

    for name in ("unscale_", "step", "update"):
        record(update.scaler, name)
    record(torch.nn.utils, "clip_grad_norm_")
    record(update.optimizer, "zero_grad")
    backward(model, update.factor())
    update.apply()
    assert calls == ["unscale_"] * 3 + ["clip_grad_norm_"] + ["step"] * 3 + ["update", "zero_grad"]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_step_that_overflows_is_skipped_by_both_optimizers_and_halves_the_scale(tiny: ModelConfig) -> None:
    model = VisionLanguageModel(tiny)
    update = update_of(model, fp16=True)
    before, scale = {name: weight.clone() for name, weight in model.named_parameters()}, update.factor()
    backward(model, scale)
    model.text_projection.weight.grad[0, 0] = float("inf")  # type: ignore[index]
    update.apply()
    assert update.skipped == 1
    assert update.factor() == scale / 2
    for name, weight in model.named_parameters():
        assert torch.equal(weight, before[name]), name
    backward(model, update.factor())
    update.apply()
    assert update.skipped == 1
    assert not torch.equal(model.text_projection.weight, before["text_projection.weight"])


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_weights_gradients_and_optimizer_state_stay_in_float32(tiny: ModelConfig, precision: str) -> None:
    model = VisionLanguageModel(tiny)
    update = update_of(model, fp16=precision == "fp16")
    if precision == "fp16":
        update.scaler.update(1.0)
    backward(model, update.factor(), precision)
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in model.parameters())
    update.apply()
    states = [value for part in update.optimizer.parts for state in part.state.values() for value in state.values()]
    assert states
    assert all(value.dtype == torch.float32 for value in [*states, *model.parameters()])


def test_the_loss_scale_survives_a_checkpoint(tiny: ModelConfig) -> None:
    first, second = (update_of(VisionLanguageModel(tiny), fp16=True) for _ in range(2))
    first.scaler.update(128.0)
    second.load_state_dict(first.state_dict())
    assert second.factor() == first.factor() == 128


def test_each_tower_is_bounded_alone(tiny: ModelConfig) -> None:
    model = VisionLanguageModel(tiny)
    for name, parameter in model.named_parameters():
        parameter.grad = torch.full_like(parameter, {"vision": 10.0, "text": 1e-4, "cross": 3.0}[tower_of(name)])
    norms = clip_gradients(model, 1.0, "perTower")
    assert set(norms) == {"vision", "text", "cross"}
    for tower, before in norms.items():
        after = torch.stack([p.grad.norm() for n, p in model.named_parameters() if tower_of(n) == tower]).norm()  # type: ignore[union-attr]
        assert after.item() == pytest.approx(min(1.0, before.item()), rel=1e-3)


@pytest.mark.parametrize(
    ("name", "tower"),
    [
        ("vision.stages.0.0.weight", "vision"),
        ("text_projection.weight", "text"),
        ("fuser.norm.bias", "cross"),
        ("log_scale", "cross"),
    ],
)
def test_weights_belong_to_a_tower_or_to_what_joins_them(name: str, tower: str) -> None:
    assert tower_of(name) == tower
