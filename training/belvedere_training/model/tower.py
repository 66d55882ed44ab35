"""What every tower offers, so that fusion and unified topologies, other encoders and other objectives can join."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

# B batch, T tokens, D width of the tower


class Encoded(NamedTuple):
    """What a tower makes of a batch: tokens for cross-attention and masked objectives, one vector for contrast.

    grid: rows and columns of the tokens, where every row of the batch has the same full grid.
    """

    tokens_BTD: Tensor
    valid_BT: Tensor
    pooled_BD: Tensor
    grid: tuple[int, int] | None = None


class Tower(Protocol):
    """An encoder of one modality."""

    token_width: int
    pooled_width: int

    def encode(self, batch: Tensor) -> Encoded:
        """Return tokens, which of them are real, and their pooled vector."""
        ...
