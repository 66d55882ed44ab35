"""Say the text from the picture: the next word, or words that were hidden."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from belvedere_training.model.text import PAD_ID

# B texts, T tokens, A places that are asked, V vocabulary

HIDDEN_SHARE = 0.15
REPLACED_BY_MASK, REPLACED_BY_WORD = 0.8, 0.1
FIRST_WORD = 2  # tokens below are padding and the start of a text, and are never hidden or put in


class Asked(NamedTuple):
    """The places before the words that count, [B, A], which of them are real, and those words."""

    place_BA: Tensor
    real_BA: Tensor
    target_BA: Tensor


def asked_places(tokens_BT: Tensor, asked_BT: Tensor) -> Asked:
    """Return where the asked tokens are said: of each text as many places as the one with the most has, later ones unreal."""
    wanted_BT = asked_BT[:, 1:] & (tokens_BT[:, 1:] != PAD_ID)
    most = int(wanted_BT.sum(1).max().clamp(min=1))
    place_BA = (~wanted_BT).to(torch.uint8).argsort(dim=1, stable=True)[:, :most]
    return Asked(place_BA, wanted_BT.gather(1, place_BA), tokens_BT[:, 1:].gather(1, place_BA))


class Hidden(NamedTuple):
    """A text with some tokens hidden, and which ones are asked for."""

    tokens_BT: Tensor
    asked_BT: Tensor


def hide_words(
    tokens_BT: Tensor, mask_id: int, vocab_size: int, generator: torch.Generator, share: float = HIDDEN_SHARE
) -> Hidden:
    """Ask for a share of the words: 80 % become the mask, 10 % another word, 10 % stay.

    Devlin et al. 2019 (arXiv:1810.04805), section 3.1. The second draw is among those that did not become the mask.
    """
    draw_3BT = torch.rand(3, *tokens_BT.shape, generator=generator).to(tokens_BT.device)
    asked_BT = (draw_3BT[0] < share) & (tokens_BT >= FIRST_WORD)
    masked_BT = asked_BT & (draw_3BT[1] < REPLACED_BY_MASK)
    swapped_BT = asked_BT & ~masked_BT & (draw_3BT[2] < REPLACED_BY_WORD / (1 - REPLACED_BY_MASK))
    words_BT = torch.randint(FIRST_WORD, vocab_size, tokens_BT.shape, generator=generator).to(tokens_BT.device)
    hidden_BT = tokens_BT.masked_fill(masked_BT, mask_id)
    return Hidden(torch.where(swapped_BT, words_BT, hidden_BT), asked_BT)


def asked_word_loss(logits_BTV: Tensor, tokens_BT: Tensor, asked_BT: Tensor) -> Tensor:
    """Return the mean cross-entropy over the words asked for, hidden ones or next ones; nothing asked costs nothing."""
    # The sum over none is 0, with a gradient of 0, where the mean would be no number.
    total = functional.cross_entropy(logits_BTV[asked_BT].float(), tokens_BT[asked_BT], reduction="sum")
    return total / asked_BT.sum().clamp(min=1)
