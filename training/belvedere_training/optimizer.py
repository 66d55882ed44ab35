"""Which optimizer moves which weight, and how the rates go over a run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from belvedere_training.muon import Muon
from belvedere_training.sharding import optimizer_state_like

MUON_FACTOR = 20.0  # of the learning rate: an orthogonalised update has another size than Adam's
EMBEDDING_FACTOR = 10.0  # a token is seen in few steps, and must move as far in them (training/LOG.md)
_FLOOR = 0.005  # of the peak learning rate, at the end of the cosine


def schedule(pairs: int, warmup: int, budget: int) -> float:
    """Return the share of the peak learning rate after this many pairs: a ramp, then half a cosine.

    Loshchilov and Hutter 2017 (arXiv:1608.03983), eq. 5, without restarts. A warm-up longer than a tenth of the
    budget is cut to that, so that short runs learn too.
    """
    warmup = min(warmup, budget // 10)
    if pairs < warmup:
        return pairs / warmup
    done = min(1.0, (pairs - warmup) / max(1, budget - warmup))
    return _FLOOR + (1 - _FLOOR) * 0.5 * (1 + math.cos(math.pi * done))


class Optimizers:
    """Muon for matrices and convolutions; AdamW for embeddings, norms, biases and the temperature.

    Jordan et al. 2024; Loshchilov and Hutter 2019 (arXiv:1711.05101), algorithm 2.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        learning_rate: float,
        weight_decay: float,
        half: bool = False,
        factors: Mapping[str, float] | None = None,
    ) -> None:
        """Sort the weights. factors: what the rate of each weight is multiplied by, by name; 1 if None."""
        matrices, embeddings, rest, numbers = _sorted_parameters(model)
        by_weight = {id(weight): (factors or {}).get(name, 1.0) for name, weight in model.named_parameters()}
        self.parts: list[torch.optim.Optimizer] = [
            Muon(_groups(matrices, MUON_FACTOR * learning_rate, by_weight), weight_decay=weight_decay, half=half),
            _adamw(
                [
                    *_groups(embeddings, EMBEDDING_FACTOR * learning_rate, by_weight),
                    *_groups(rest, learning_rate, by_weight),
                ]
            ),
        ]
        if numbers:  # apart: a number is never in shares, and one call takes weights in shares or whole ones
            self.parts.append(_adamw(_groups(numbers, learning_rate, by_weight)))
        for group in self._groups():
            group["peak"] = group["lr"]

    def _groups(self) -> list[dict[str, Any]]:
        return [group for part in self.parts for group in part.param_groups]

    def set_rate(self, share: float) -> None:
        """Set every group to this share of its peak."""
        for group in self._groups():
            group["lr"] = group["peak"] * share

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def step(self) -> None:
        """Update all weights."""
        for part in self.parts:
            part.step()

    def state_dict(self) -> list[dict[str, Any]]:
        """Return the state of each part."""
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Take the state of each part."""
        for part, state in zip(self.parts, states, strict=True):
            weights = [weight for group in part.param_groups for weight in group["params"]]
            part.load_state_dict(optimizer_state_like(state, weights))


def _adamw(groups: list[dict[str, Any]]) -> torch.optim.AdamW:
    return torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0, fused=True)


def _groups(weights: list[nn.Parameter], rate: float, factors: Mapping[int, float]) -> list[dict[str, Any]]:
    """Return the weights by the factor on their rate, in a fixed order."""
    found: dict[float, list[nn.Parameter]] = {}
    for weight in weights:
        found.setdefault(factors[id(weight)], []).append(weight)
    return [{"params": own, "lr": factor * rate} for factor, own in found.items()]


def _sorted_parameters(model: nn.Module) -> tuple[list[nn.Parameter], ...]:
    """Return weights of linear layers and convolutions, embeddings, everything else, and what is a single number."""
    inner = {id(m.weight) for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))}
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    matrices: list[nn.Parameter] = []
    embeddings: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    numbers: list[nn.Parameter] = []
    for parameter in model.parameters():
        other = numbers if parameter.ndim == 0 else rest
        kind = matrices if id(parameter) in inner else embeddings if id(parameter) in tables else other
        kind.append(parameter)
    return matrices, embeddings, rest, numbers
