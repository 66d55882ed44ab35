"""Which resolution a picture deserves: plain ones are computed small, busy ones large."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from belvedere_platform.errors import InvalidInput
from belvedere_training.model.config import RESOLUTIONS
from belvedere_training.model.patches import TokenBatch, pack
from belvedere_training.model.tower import Encoded, Tower

# B pictures, H and W pixels

_GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601 luma


def entropy(pixels_B3HW: Tensor) -> Tensor:
    """Return the Shannon entropy in bits of each picture's histogram of 256 grey levels. pixels: uint8."""
    weight_311 = torch.tensor(_GREY, device=pixels_B3HW.device)[:, None, None]
    grey_BN = (pixels_B3HW * weight_311).sum(1).round().long().clamp(0, 255).flatten(1)
    count_BL = torch.zeros(len(grey_BN), 256, device=grey_BN.device)
    count_BL.scatter_add_(1, grey_BN, torch.ones_like(grey_BN, dtype=count_BL.dtype))
    share_BL = count_BL / grey_BN.shape[1]
    bits_BL: Tensor = torch.special.xlogy(share_BL, share_BL) / math.log(2)
    return -bits_BL.sum(1)


THRESHOLDS = (4.0, 7.0)


@dataclass(frozen=True, kw_only=True)
class ResolutionRouter:
    """Entropy below the first threshold takes the first resolution, and so on; above the last one, the largest."""

    thresholds: tuple[float, ...] = THRESHOLDS
    resolutions: tuple[int, ...] = RESOLUTIONS

    def of_entropy(self, bits: float) -> int:
        """Return the resolution for so many bits."""
        return self.resolutions[sum(bits >= threshold for threshold in self.thresholds)]

    def route(self, pixels_B3HW: Tensor) -> list[int]:
        """Return the resolution of each picture. pixels: uint8."""
        return [self.of_entropy(bits) for bits in entropy(pixels_B3HW).tolist()]


def steps_to(edge: int, stride: int) -> tuple[int, int, int]:
    """Return the resolutions that pictures of this edge are seen at, half, five sevenths and all of it: 112, 160 and 224."""
    if edge % (2 * stride):
        raise InvalidInput(
            f"optimization.resolution is not Whole: half of the {edge} pixels is no multiple of {stride}, the stride of the "
            f"vision tower; set it to Whole, or use pictures of a multiple of {2 * stride} pixels"
        )
    return edge // 2, round(5 * edge / 7 / stride) * stride, edge


def encode_each(tower: Tower, pixels_B3HW: Tensor, resolutions: Sequence[int]) -> Encoded:
    """Return what the tower makes of each normalised picture at its own resolution, those of one resolution together.

    Nothing is computed for padding: only the tokens that come out are filled up to the longest sequence.
    """
    order: list[int] = []
    parts: list[Encoded] = []
    for resolution, rows in buckets(resolutions):
        own_B3HW = pixels_B3HW[rows]
        parts.append(tower.encode(own_B3HW if resolution == own_B3HW.shape[-1] else resize(own_B3HW, resolution)))
        order += rows
    longest = max(part.valid_BT.shape[1] for part in parts)
    back = torch.tensor(order, device=pixels_B3HW.device).argsort()
    filled = [
        (
            functional.pad(part.tokens_BTD, (0, 0, 0, longest - part.valid_BT.shape[1])),
            functional.pad(part.valid_BT, (0, longest - part.valid_BT.shape[1])),
            part.pooled_BD,
        )
        for part in parts
    ]
    tokens_BTD, valid_BT, pooled_BD = (torch.cat(tensors)[back] for tensors in zip(*filled, strict=True))
    return Encoded(tokens_BTD, valid_BT, pooled_BD, parts[0].grid if len(parts) == 1 else None)


def resize(pixels_B3HW: Tensor, resolution: int) -> Tensor:
    """Return square pictures of this resolution, smoothed where they shrink."""
    size = (resolution, resolution)
    return functional.interpolate(pixels_B3HW, size, mode="bilinear", align_corners=False, antialias=True)


def buckets(resolutions: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
    """Yield each resolution that occurs with the positions of its pictures: batches without padding."""
    for resolution in sorted(set(resolutions)):
        yield resolution, [place for place, own in enumerate(resolutions) if own == resolution]


def routed(pixels_B3HW: Tensor, resolutions: Sequence[int], patch: int) -> TokenBatch:
    """Return normalised pictures as one batch of tokens, each at its own resolution."""
    pictures = [resize(picture[None], size)[0] for picture, size in zip(pixels_B3HW, resolutions, strict=True)]
    return pack(pictures, patch)
