"""Random views of pictures and texts, drawn for the whole batch so that workers agree on them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from belvedere_platform.resources.training_data import Augmentation
from belvedere_training.model.config import HALF, Normalization
from belvedere_training.model.normalization import from_half, normalise
from belvedere_training.model.text import PAD_ID

# B batch, S picture edge, T tokens


def views(
    own_B3SS: Tensor,
    generator: torch.Generator,
    setting: Augmentation,
    rows: slice,
    count: int,
    normalization: Normalization = HALF,
) -> Tensor:
    """Return augmented, normalised pictures; what leaves the frame shows white. How far they go is the same for every model.

    own_B3SS: the pictures of these rows of a global batch of `count`, uint8. Draws are made for the whole batch.
    """
    draw_B10 = torch.rand(count, 10, generator=generator)[rows]
    size = own_B3SS.shape[-1]
    angle_B = (draw_B10[:, 0] - 0.5) * 2 * setting.rotation
    ratio_B = 1 / (setting.smallest + draw_B10[:, 1] * (setting.largest - setting.smallest))
    affine_B23 = torch.zeros(len(own_B3SS), 2, 3)
    affine_B23[:, 0, 0] = affine_B23[:, 1, 1] = torch.cos(angle_B) * ratio_B
    affine_B23[:, 1, 0] = torch.sin(angle_B) * ratio_B
    affine_B23[:, 0, 1] = -affine_B23[:, 1, 0]
    affine_B23[:, :, 2] = (draw_B10[:, 2:4] - 0.5) * 2 * setting.shift
    grid_BSS2 = functional.affine_grid(affine_B23, [len(own_B3SS), 3, size, size], align_corners=False)
    white = 1.0  # sampling pads with zeros, so white is moved there and back
    moved_B3SS = functional.grid_sample(normalise(own_B3SS, HALF) - white, grid_BSS2, align_corners=False) + white
    gain_B111 = (1 + (draw_B10[:, 4] - 0.5) * 2 * setting.brightness)[:, None, None, None]
    tint_B311 = ((draw_B10[:, 5:8] - 0.5) * 2 * setting.color_shift)[:, :, None, None]
    lit_B3SS = moved_B3SS * gain_B111 + tint_B311
    grey_B111 = (draw_B10[:, 8] < setting.gray_share)[:, None, None, None]
    mixed = torch.where(grey_B111, lit_B3SS.mean(1, keepdim=True).expand_as(lit_B3SS), lit_B3SS)
    return from_half(mixed, normalization).contiguous(memory_format=torch.channels_last)


def drop_words(tokens_BT: Tensor, generator: torch.Generator, setting: Augmentation, rows: slice) -> Tensor:
    """Return the rows with some tokens (never the first two) replaced by padding, which the text tower skips."""
    dropped_BT = torch.rand(tokens_BT.shape, generator=generator) < setting.word_dropout
    dropped_BT[:, :2] = False
    return tokens_BT.masked_fill(dropped_BT, PAD_ID)[rows]
