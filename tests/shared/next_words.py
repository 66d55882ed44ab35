"""The loss of next words, written as it is defined: all places of all texts, padding and what is not asked left out."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from belvedere_training.model.text import PAD_ID

# B texts, T tokens, V vocabulary


def next_word_loss(logits_BTV: Tensor, tokens_BT: Tensor, asked_BT: Tensor | None = None) -> Tensor:
    """Return the mean cross-entropy of each asked token given those before it; nothing asked costs nothing."""
    counted_BT = tokens_BT[:, 1:] != PAD_ID
    if asked_BT is not None:
        counted_BT = counted_BT & asked_BT[:, 1:]
    target_BT = tokens_BT[:, 1:].masked_fill(~counted_BT, -100)
    total = functional.cross_entropy(logits_BTV[:, :-1].flatten(0, 1), target_BT.flatten(), reduction="sum")
    return total / counted_BT.sum().clamp(min=1)
