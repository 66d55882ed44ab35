"""Image-text contrast: symmetric, smoothed, and blind to pairs that are no true negatives."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

# B pairs of this worker, G pairs of all workers, E embedding


def alike(concepts: list[int] | tuple[int, ...], texts: list[str] | tuple[str, ...]) -> Tensor:
    """Return [G, G] true where two pairs show the same concept or bear the same text, the diagonal included."""
    numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    concept_G = torch.tensor(concepts)
    text_G = torch.tensor([numbers[text] for text in texts])
    return (concept_G[:, None] == concept_G[None]) | (text_G[:, None] == text_G[None])


def contrastive_loss(
    image_BE: Tensor,
    text_BE: Tensor,
    scale: Tensor,
    *,
    all_image_GE: Tensor | None = None,
    all_text_GE: Tensor | None = None,
    same_GG: Tensor | None = None,
    first: int = 0,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Return the mean cross-entropy of both directions over this worker's rows against everybody's.

    Radford et al. 2021, fig. 3. `first` is the place of this worker's first pair among all; the mean of the workers'
    losses is the loss of the global batch. Pairs marked in same_GG, other than the pair itself, are left out.
    """
    all_image_GE = image_BE if all_image_GE is None else all_image_GE
    all_text_GE = text_BE if all_text_GE is None else all_text_GE
    target_B = torch.arange(first, first + len(image_BE), device=image_BE.device)
    keep_BG = None
    if same_GG is not None:
        keep_BG = ~same_GG[first : first + len(image_BE)].clone()
        keep_BG[torch.arange(len(image_BE)), target_B] = True
    image_to_text_BG = scale * image_BE @ all_text_GE.T
    text_to_image_BG = scale * text_BE @ all_image_GE.T
    forward = smoothed_cross_entropy(image_to_text_BG, target_B, keep_BG, label_smoothing)
    return (forward + smoothed_cross_entropy(text_to_image_BG, target_B, keep_BG, label_smoothing)) / 2


def smoothed_cross_entropy(logits_BG: Tensor, target_B: Tensor, keep_BG: Tensor | None, smoothing: float) -> Tensor:
    """Return the mean cross-entropy over the kept columns. Szegedy et al. 2016 (arXiv:1512.00567), section 7."""
    if keep_BG is None:
        return functional.cross_entropy(logits_BG, target_B, label_smoothing=smoothing)
    log_probability_BG = functional.log_softmax(logits_BG.masked_fill(~keep_BG, float("-inf")), dim=-1)
    hit_B = log_probability_BG.gather(1, target_B[:, None])[:, 0]
    # Left-out columns are set to zero before the sum: their -inf times zero would be no number.
    mean_B = log_probability_BG.masked_fill(~keep_BG, 0).sum(1) / keep_BG.sum(1)
    return -((1 - smoothing) * hit_B + smoothing * mean_B).mean()
