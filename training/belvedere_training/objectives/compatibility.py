"""Stay near a frozen parent, so that an index built with the parent's embeddings keeps working."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

# B pairs, E embedding


def compatibility_loss(own_BE: Tensor, parent_BE: Tensor, *, slack: float = 0.0) -> Tensor:
    """Return the mean distance 1 - cosine beyond the slack. Unit vectors; no gradient reaches the parent.

    A feature-distillation form of backward-compatible training (Shen et al. 2020, arXiv:2003.11942, section 3).
    """
    cosine_B = (own_BE * parent_BE.detach()).sum(-1)
    return functional.relu(1 - slack - cosine_B).mean()
