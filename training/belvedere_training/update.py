"""One update of the weights: unscale, clip, step, adapt the loss scale, forget the gradients, in this order."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from belvedere_training.optimizer import Optimizers
from belvedere_training.sharding import clipped, in_shares

Clip = Literal["global", "perTower"]
INITIAL_SCALE = 2.0**16


class Update:
    """Weights and optimizer state stay in float32; fp16 scales the loss, and a step that overflows is skipped.

    Micikevicius et al. 2018 (arXiv:1710.03740), sections 3.1 and 3.2.
    """

    def __init__(
        self, model: nn.Module, optimizer: Optimizers, *, clip: Clip, clip_norm: float, device: torch.device, fp16: bool
    ) -> None:
        self.model, self.optimizer = model, optimizer
        self.clip, self.clip_norm = clip, clip_norm
        self.scaler = torch.amp.GradScaler(device.type, init_scale=INITIAL_SCALE, enabled=fp16)
        self.scaler.scale(torch.zeros((), device=device))  # it makes its state at the first call
        self.skipped = 0

    def factor(self) -> float:
        """Return what the loss is multiplied by before the backward pass: 1 unless fp16."""
        return float(self.scaler.get_scale())

    def apply(self) -> dict[str, float]:
        """Update all weights and return the norm of each tower's gradient (or the whole) before clipping."""
        for part in self.optimizer.parts:
            self.scaler.unscale_(part)
        norms = clip_gradients(self.model, self.clip_norm, self.clip)
        if self.scaler.is_enabled() and not all(bool(norm.isfinite()) for norm in norms.values()):
            self.skipped += 1  # both optimizers, also where only one of them met the overflow
        else:
            for part in self.optimizer.parts:
                self.scaler.step(part)
        self.scaler.update()
        self.optimizer.zero_grad()
        return {name: norm.item() for name, norm in norms.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the loss scale."""
        return {"scaler": self.scaler.state_dict(), "skipped": self.skipped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the state of the loss scale."""
        self.scaler.load_state_dict(state["scaler"])
        self.skipped = state["skipped"]


def clip_gradients(model: nn.Module, limit: float, clip: Clip) -> dict[str, Tensor]:
    """Bound the norm of all gradients together, or of each tower and of what joins them, and return the norms before."""
    if clip == "global":
        return {"all": _clipped(list(model.parameters()), limit)}
    towers: dict[str, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        towers.setdefault(tower_of(name), []).append(parameter)
    return {tower: _clipped(parameters, limit) for tower, parameters in towers.items()}


def _clipped(parameters: list[nn.Parameter], limit: float) -> Tensor:
    if any(in_shares(parameter) for parameter in parameters):
        return clipped([parameter.grad for parameter in parameters if parameter.grad is not None], limit)
    return nn.utils.clip_grad_norm_(parameters, limit)


def tower_of(name: str) -> str:
    """Return vision, text, or cross for what belongs to neither alone."""
    return next((tower for tower in ("vision", "text") if name.startswith((f"{tower}.", f"{tower}_"))), "cross")
