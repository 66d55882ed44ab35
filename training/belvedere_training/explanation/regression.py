"""Weighted ridge regression in closed form: the interpretable model of LIME and Kernel SHAP, without scikit-learn."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class WeightedRidge:
    """A linear model that captum can fit: Ribeiro et al. 2016 (arXiv:1602.04938), eq. 1 with a square penalty."""

    def __init__(self, penalty: float) -> None:
        self.penalty = penalty
        self._solution = torch.zeros(1)

    def fit(self, train_data: Any, **_: object) -> dict[str, Any]:
        """Fit on batches of (x [n, F], y [n], weight [n])."""
        parts = [tuple(part) for part in train_data]
        x_nF, y_n, weight_n = (torch.cat([part[place] for part in parts]).double() for place in range(3))
        design_nG = torch.cat([x_nF, torch.ones(len(x_nF), 1, dtype=torch.double)], 1)
        penalty_G = torch.full((design_nG.shape[1],), self.penalty, dtype=torch.double)
        penalty_G[-1] = 0.0  # the constant is not held back
        weighted_nG = design_nG * (weight_n / weight_n.sum())[:, None]
        self._solution = torch.linalg.lstsq(
            weighted_nG.T @ design_nG + penalty_G.diag(), weighted_nG.T @ y_n[:, None]
        ).solution[:, 0]
        return {}

    def representation(self) -> Tensor:
        """Return the coefficients [1, F]."""
        return self._solution[None, :-1].float()

    def __call__(self, x: Any) -> Any:
        """Return predictions [n]."""
        return x.double() @ self._solution[:-1] + self._solution[-1]
