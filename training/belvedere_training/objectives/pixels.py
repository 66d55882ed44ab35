"""Paint the hidden patches. He et al. 2022 (arXiv:2111.06377): three quarters are hidden, and the encoder never sees them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from belvedere_training.model.config import VitConfig
from belvedere_training.model.patches import tokens_of
from belvedere_training.model.vision_language import VisionLanguageModel

# B pictures, N patches, K visible patches, P values of a patch, S picture edge

HIDDEN_SHARE = 0.75


class PatchSplit(NamedTuple):
    """Which patches the encoder sees, and which are asked for."""

    kept_BK: Tensor
    asked_BN: Tensor


def split_patches(count: int, num_patches: int, generator: torch.Generator, share: float = HIDDEN_SHARE) -> PatchSplit:
    """Hide the same number of patches in every picture, anew in each: 147 of 196."""
    num_kept = num_patches - int(share * num_patches)
    kept_BK = torch.rand(count, num_patches, generator=generator).argsort(1)[:, :num_kept]
    asked_BN = torch.ones(count, num_patches, dtype=torch.bool).scatter(1, kept_BK, False)
    return PatchSplit(kept_BK, asked_BN)


def masked_patch_loss(predicted_BNP: Tensor, patches_BNP: Tensor, asked_BN: Tensor) -> Tensor:
    """Return the mean squared error over hidden patches alone, each patch normalised (He et al. 2022, section 4.2)."""
    target_BNP = functional.layer_norm(patches_BNP.float(), patches_BNP.shape[-1:])
    error_BN = (predicted_BNP.float() - target_BNP).square().mean(-1)
    return (error_BN * asked_BN).sum() / asked_BN.sum()


def masked_image_loss(model: VisionLanguageModel, pixels_B3SS: Tensor, generator: torch.Generator) -> Tensor:
    """Encode the visible patches, decode all, and compare the hidden ones."""
    assert isinstance(model.config.vision, VitConfig)
    batch = tokens_of(pixels_B3SS, model.config.vision.patch_size)
    count, num_patches = batch.valid_BN.shape
    split = split_patches(count, num_patches, generator)
    kept_BK, asked_BN = split.kept_BK.to(pixels_B3SS.device), split.asked_BN.to(pixels_B3SS.device)
    visible_BKD = model.vision.encode(batch.keep(kept_BK)).tokens_BTD
    predicted_BNP = model.pixel_decoder(visible_BKD, kept_BK, batch.centre_BN2)
    return masked_patch_loss(predicted_BNP, batch.patches_BNP, asked_BN)
