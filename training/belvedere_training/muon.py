"""Muon: momentum whose update is orthogonalised, for the matrices and convolutions inside the towers.

Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"; the scale by shape keeps an update's size
independent of the matrix. torch.optim.Muon takes matrices only; convolutions are seen here as [out, in * height * width].
Embeddings, norms, biases and the temperature belong to AdamW.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from belvedere_training.sharding import shared_like, whole

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic iteration that drives all singular values towards one (Jordan et al. 2024)."""
_WIDE = 1.4
"""From this ratio of its sides on, a matrix is cheaper to orthogonalise by way of the product of its rows."""


def orthogonalise(matrix_MN: Tensor, num_steps: int = 5, *, half: bool = False) -> Tensor:
    """Return about the nearest matrix with all singular values near one (between about 0.7 and 1.2).

    half: compute in bfloat16, which the iteration bears; only faster where the processor has it.
    """
    first, second, third = NEWTON_SCHULZ
    tall = matrix_MN.shape[0] > matrix_MN.shape[1]
    x: Tensor = (matrix_MN.T if tall else matrix_MN).float()
    x = x / (x.norm() + 1e-7)
    if not half and x.shape[1] > _WIDE * x.shape[0]:
        x = _polynomial(x @ x.T, num_steps) @ x
        return x.T if tall else x
    x = x.bfloat16() if half else x
    for _ in range(num_steps):
        gram = x @ x.T
        x = first * x + (second * gram + third * gram @ gram) @ x
    return x.T if tall else x


def _polynomial(gram: Tensor, num_steps: int) -> Tensor:
    """Return the matrix that the iteration multiplies a wide x by, from x xT alone: each step is a polynomial in that.

    They commute, so the next x xT is q g q. Squares halve the digits: this is for float32.
    """
    first, second, third = NEWTON_SCHULZ
    total = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    for step in range(num_steps):
        factor = torch.addmm(gram, gram, gram, beta=second, alpha=third)
        factor.diagonal().add_(first)
        total = factor @ total
        if step < num_steps - 1:
            gram = factor @ gram @ factor
    return total


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised, with decoupled weight decay. Parameters have two dims or more."""

    def __init__(
        self,
        parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        *,
        lr: float = 0.02,
        weight_decay: float = 0.05,
        momentum: float = 0.95,
        half: bool = False,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self.half = half
        flat = [tuple(p.shape) for group in self.param_groups for p in group["params"] if p.ndim < 2]
        if flat:
            raise ValueError(f"Muon needs parameters of two dims or more; got {flat[0]}: give those to AdamW")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        assert closure is None, "a closure is not supported"
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(parameter)
                momentum = state["momentum"].mul_(group["momentum"]).add_(parameter.grad)
                # A matrix in shares is orthogonalised whole, by every worker: its rows alone would give another result.
                update_MN = whole(parameter.grad.add(momentum, alpha=group["momentum"])).flatten(1)
                scale = max(1.0, update_MN.shape[0] / update_MN.shape[1]) ** 0.5
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                direction = orthogonalise(update_MN, half=self.half).reshape(parameter.shape).to(parameter.dtype)
                parameter.add_(shared_like(direction, parameter), alpha=-group["lr"] * scale)
