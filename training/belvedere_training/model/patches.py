"""Pictures as sequences of patches: of one size as a grid, of several sizes as one padded batch of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

# B pictures, H and W pixels, R and C rows and columns of patches, N = R * C tokens, P = 3 * patch * patch values


class TokenBatch(NamedTuple):
    """Pictures of any sizes as tokens, in the manner of NaFlex (Tschannen et al. 2025, arXiv:2502.14786, section 2.4).

    centre_BN2: where each patch stands in its picture, x then y, the whole picture being [-1, 1]. Padding is not valid.
    """

    patches_BNP: Tensor
    centre_BN2: Tensor
    valid_BN: Tensor

    def keep(self, index_BK: Tensor) -> TokenBatch:
        """Return only these tokens of each picture."""
        return TokenBatch(
            self.patches_BNP.gather(1, index_BK[..., None].expand(-1, -1, self.patches_BNP.shape[-1])),
            self.centre_BN2.gather(1, index_BK[..., None].expand(-1, -1, 2)),
            self.valid_BN.gather(1, index_BK),
        )


def patchify(pixels_B3HW: Tensor, patch: int) -> Tensor:
    """Return [B, N, P], row after row; each patch as a convolution's weight sees it (channel, row, column)."""
    rows, columns = pixels_B3HW.shape[2] // patch, pixels_B3HW.shape[3] // patch
    blocks = pixels_B3HW.reshape(-1, 3, rows, patch, columns, patch)
    return blocks.permute(0, 2, 4, 1, 3, 5).reshape(-1, rows * columns, 3 * patch * patch)


def unpatchify(patches_BNP: Tensor, rows: int, columns: int) -> Tensor:
    """Return the pictures [B, 3, H, W] of a full grid of patches."""
    patch = round((patches_BNP.shape[-1] / 3) ** 0.5)
    blocks = patches_BNP.reshape(-1, rows, columns, 3, patch, patch)
    return blocks.permute(0, 3, 1, 4, 2, 5).reshape(-1, 3, rows * patch, columns * patch)


def centres(rows: int, columns: int, device: torch.device | None = None) -> Tensor:
    """Return the centres [N, 2] of the patches of a grid."""
    y_R = (2 * torch.arange(rows, device=device) + 1) / rows - 1
    x_C = (2 * torch.arange(columns, device=device) + 1) / columns - 1
    return torch.stack([x_C.repeat(rows), y_R.repeat_interleave(columns)], dim=-1)


def tokens_of(pixels_B3HW: Tensor, patch: int) -> TokenBatch:
    """Return pictures of one size as tokens."""
    patches_BNP = patchify(pixels_B3HW, patch)
    count, device = len(pixels_B3HW), pixels_B3HW.device
    centre_N2 = centres(pixels_B3HW.shape[2] // patch, pixels_B3HW.shape[3] // patch, device)
    valid_BN = torch.ones(patches_BNP.shape[:2], dtype=torch.bool, device=device)
    return TokenBatch(patches_BNP, centre_N2.expand(count, -1, -1), valid_BN)


def pack(pictures: Sequence[Tensor], patch: int, num_tokens: int | None = None) -> TokenBatch:
    """Return pictures [3, H, W] of any sizes as one batch, padded to num_tokens or to the largest of them."""
    parts = [tokens_of(picture[None], patch) for picture in pictures]
    longest = max(part.valid_BN.shape[1] for part in parts)
    assert num_tokens is None or num_tokens >= longest, f"{longest} tokens do not fit into {num_tokens}"
    length = num_tokens or longest

    def padded(tensor_1N: Tensor) -> Tensor:
        missing = length - tensor_1N.shape[1]
        return functional.pad(tensor_1N, (0, 0) * (tensor_1N.ndim - 2) + (0, missing))

    return TokenBatch(*(torch.cat([padded(part[field]) for part in parts]) for field in range(3)))
