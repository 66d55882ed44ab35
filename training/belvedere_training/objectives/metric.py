"""Losses on embeddings other than the two-way contrast of the recipe: what it is compared with, and finer ones."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from belvedere_training.objectives.contrastive import contrastive_loss

# B pairs, V = 2B views, E embedding

ALIGNMENT_TEMPERATURE, VIEW_TEMPERATURE = 0.07, 0.1


def cosine(first_BE: Tensor, second_BE: Tensor) -> Tensor:
    """Return the cosine of each pair, in [-1, 1]."""
    return functional.cosine_similarity(first_BE, second_BE, dim=-1).clamp(-1, 1)


def squared_error_loss(image_BE: Tensor, text_BE: Tensor) -> Tensor:
    """Return the mean squared distance of pairs. It knows no negatives, so all embeddings may fall together."""
    return functional.mse_loss(image_BE, text_BE)


def alignment_loss(
    image_BE: Tensor, text_BE: Tensor, temperature: float = ALIGNMENT_TEMPERATURE, *, one_way: bool = False
) -> Tensor:
    """Return the contrast of normalised embeddings at a fixed temperature; one_way: pictures ask, texts answer."""
    image_BE, text_BE = functional.normalize(image_BE, dim=-1), functional.normalize(text_BE, dim=-1)
    scale = torch.tensor(1 / temperature, device=image_BE.device)
    if not one_way:
        return contrastive_loss(image_BE, text_BE, scale)
    return functional.cross_entropy(scale * image_BE @ text_BE.T, torch.arange(len(image_BE), device=image_BE.device))


def two_view_loss(first_BE: Tensor, second_BE: Tensor, temperature: float = VIEW_TEMPERATURE) -> Tensor:
    """Return the contrast of two views of one modality: all other views of the batch are negatives, oneself is none.

    NT-Xent, Chen et al. 2020 (arXiv:2002.05709), eq. 1. The target is the other view: the diagonal itself is left out.
    """
    view_VE = functional.normalize(torch.cat([first_BE, second_BE]).float(), dim=-1)
    count = len(first_BE)
    logits_VV = view_VE @ view_VE.T / temperature
    logits_VV = logits_VV.masked_fill(torch.eye(2 * count, dtype=torch.bool, device=view_VE.device), float("-inf"))
    target_V = torch.arange(2 * count, device=view_VE.device).roll(count)
    return functional.cross_entropy(logits_VV, target_V)


def triplet_loss(anchor_BE: Tensor, positive_BE: Tensor, negative_BE: Tensor, margin: float = 0.2) -> Tensor:
    """Return how far the negative is from being a margin farther than the positive. Schroff et al. 2015 (arXiv:1503.03832), eq. 2."""
    nearer_B = (anchor_BE - positive_BE).square().sum(-1)
    farther_B = (anchor_BE - negative_BE).square().sum(-1)
    return functional.relu(nearer_B - farther_B + margin).mean()
