"""Cross-attention over a quarter of the image keys: 2x2 means of them, or the blocks that matter most.

Both leave exactly H * W / 4 keys, so the scores cost a quarter: O(H/2 * W/2 * L) instead of O(H * W * L) for L texts tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from belvedere_training.model.config import Attend

# B batch, R and C rows and columns, N = R * C image tokens, M = N / 4 blocks or keys, T text tokens, D width

BLOCK = 2


def quartered(tokens_BND: Tensor, grid: tuple[int, int] | None, attend: Attend, query_BTD: Tensor) -> Tensor:
    """Return the keys that text may look at. top: those blocks whose mean agrees most with the mean query."""
    if attend == "full":
        return tokens_BND
    assert grid is not None, "blocked attention needs pictures of one size: tokens of several sizes have no common grid"
    means_BMD = pooled(tokens_BND, grid)
    return means_BMD if attend == "pooled" else best_blocks(tokens_BND, grid, means_BMD, query_BTD)


def pooled(tokens_BND: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the mean of each 2x2 block: [B, N / 4, D]."""
    _check(grid)
    square_BDRC = tokens_BND.transpose(1, 2).reshape(len(tokens_BND), -1, *grid)
    return functional.avg_pool2d(square_BDRC, BLOCK).flatten(2).transpose(1, 2)


def best_blocks(tokens_BND: Tensor, grid: tuple[int, int], means_BMD: Tensor, query_BTD: Tensor) -> Tensor:
    """Return the tokens of the best blocks, block after block, until there are N / 4: [B, N / 4, D]."""
    count, width = means_BMD.shape[1:]
    score_BM = torch.einsum("bmd,bd->bm", means_BMD, query_BTD.mean(1)) / width**0.5
    chosen_BK = score_BM.topk(-(-count // BLOCK**2), dim=1).indices
    rows, columns = grid
    split = tokens_BND.reshape(len(tokens_BND), rows // BLOCK, BLOCK, columns // BLOCK, BLOCK, width)
    blocks_BMJD = split.permute(0, 1, 3, 2, 4, 5).flatten(3, 4).flatten(1, 2)
    best_BKJD = blocks_BMJD.gather(1, chosen_BK[:, :, None, None].expand(-1, -1, BLOCK**2, width))
    # The share of its score weighs each chosen block, so that choosing can be learned.
    share_BK = score_BM.softmax(1).gather(1, chosen_BK) * count
    weighted_BSD: Tensor = (best_BKJD * share_BK[:, :, None, None]).flatten(1, 2)
    return weighted_BSD[:, :count]


def _check(grid: tuple[int, int]) -> None:
    if grid[0] % BLOCK or grid[1] % BLOCK:
        raise ValueError(
            f"fusion.attend pooled and top need a grid of even sides, and this picture has {grid[0]}x{grid[1]} tokens: "
            "use fusion.attend full, or a resolution that is a multiple of twice the patch (160 or 224 with patch 16)"
        )
