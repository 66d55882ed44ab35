"""Pixels as a model takes them: every channel less its mean, over its deviation. Which ones is part of the model."""

from __future__ import annotations

import torch
from torch import Tensor

from belvedere_training.model.config import HALF, Normalization

# B pictures, S picture edge


def normalise(pixels_B3SS: Tensor, normalization: Normalization) -> Tensor:
    """Return uint8 pixels as the floats that a model of this normalization takes."""
    return _standardised(pixels_B3SS.float().div(255), normalization)


def from_half(pixels_B3SS: Tensor, normalization: Normalization) -> Tensor:
    """Return pixels that were normalised by HALF, in [-1, 1], as a model of this normalization takes them."""
    if normalization == HALF:
        return pixels_B3SS
    return _standardised(pixels_B3SS.mul(0.5).add(0.5), normalization)


def white(normalization: Normalization) -> Tensor:
    """Return the ground that every picture of the data sets stands on, [3, 1, 1]."""
    return _standardised(torch.ones(3, 1, 1), normalization)


def _standardised(share_B3SS: Tensor, normalization: Normalization) -> Tensor:
    mean_311, std_311 = (
        torch.tensor(values, dtype=share_B3SS.dtype, device=share_B3SS.device)[:, None, None]
        for values in (normalization.mean, normalization.std)
    )
    return share_B3SS.sub(mean_311).div(std_311)
