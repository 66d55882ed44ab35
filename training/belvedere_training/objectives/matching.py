"""Does this text belong to this picture? Negatives are pairs that the model itself finds likely.

Li et al. 2021 (arXiv:2107.07651), section 3.2: one hard negative text a picture and one hard negative picture a text.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from belvedere_training.model.tower import Encoded
from belvedere_training.model.vision_language import VisionLanguageModel

# B pairs of this worker, T tokens, E embedding, K logits

_FLOOR = 1e-4  # keeps a row drawable when all its similarities vanish (salesforce/BLIP issue 76)


class Negatives(NamedTuple):
    """For each picture a text, and for each text a picture, that do not belong to it; found_B is false where all do."""

    text_B: Tensor
    image_B: Tensor
    found_B: Tensor


def derangement(count: int, generator: torch.Generator) -> Tensor:
    """Return a random order of 0 … count - 1 in which nothing stays in its place. Sattolo 1986: one single cycle."""
    assert count > 1, "a single pair has no negative"
    order = list(range(count))
    for last in range(count - 1, 0, -1):
        other = int(torch.randint(last, (), generator=generator))
        order[last], order[other] = order[other], order[last]
    return torch.tensor(order)


def hard_negatives(
    image_BE: Tensor, text_BE: Tensor, scale: Tensor, same_BB: Tensor, generator: torch.Generator
) -> Negatives:
    """Draw negatives with the probability that the model gives them; pairs marked in same_BB are never drawn."""
    logits_BB = (scale * image_BE @ text_BE.T).detach().float()
    allowed_BB = ~same_BB
    found_B = allowed_BB.any(1) & allowed_BB.any(0)
    return Negatives(_draw(logits_BB, allowed_BB, generator), _draw(logits_BB.T, allowed_BB.T, generator), found_B)


def _draw(logits_BB: Tensor, allowed_BB: Tensor, generator: torch.Generator) -> Tensor:
    share_BB = (logits_BB.softmax(1) + _FLOOR) * allowed_BB
    # A row in which nothing is allowed is drawn from all and left out afterwards.
    share_BB = torch.where(allowed_BB.any(1, keepdim=True), share_BB, 1.0)
    # On the CPU in float32, so that every device and precision draws the same.
    return torch.multinomial(share_BB.cpu(), 1, generator=generator)[:, 0].to(logits_BB.device)


def matching_loss(
    model: VisionLanguageModel, image: Encoded, text: Encoded, negatives: Negatives
) -> tuple[Tensor, Tensor]:
    """Return the loss over each pair, its picture with a wrong text and its text with a wrong picture; and the 3B logits."""
    kept_B = negatives.found_B.nonzero()[:, 0]
    count = len(image.tokens_BTD)
    own_B = torch.arange(count, device=image.tokens_BTD.device)
    image_order = torch.cat([own_B, kept_B, negatives.image_B[kept_B]])
    text_order = torch.cat([own_B, negatives.text_B[kept_B], kept_B])
    joint_BD = model.fuse_encoded(chosen(image, image_order), chosen(text, text_order)).joint_BD
    logits_BK = model.match_head(joint_BD)
    label_B = (torch.arange(len(image_order), device=own_B.device) < count).long()
    return pair_loss(logits_BK, label_B, model.config.fusion.itm_head), model.match_logits(joint_BD)


def pair_loss(logits_BK: Tensor, label_B: Tensor, head: Literal["bce", "ce"]) -> Tensor:
    """Return the binary cross-entropy of one logit, or the cross-entropy of two: the same up to parametrisation."""
    if head == "bce":
        return functional.binary_cross_entropy_with_logits(logits_BK[:, 0].float(), label_B.float())
    return functional.cross_entropy(logits_BK.float(), label_B)


def chosen(encoded: Encoded, order_B: Tensor) -> Encoded:
    """Return these rows of what a tower made."""
    return Encoded(encoded.tokens_BTD[order_B], encoded.valid_BT[order_B], encoded.pooled_BD[order_B], encoded.grid)
