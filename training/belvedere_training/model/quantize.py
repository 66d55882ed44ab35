"""From vectors to a vocabulary: the nearest of learned codes, a fixed grid, or one after the other on what is left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

# B pictures, N tokens, R = B * N rows, D width of a code, K codes, L levels of a hierarchy

COMMITMENT = 0.25
_SEARCH_ROWS = 4096  # rows compared with all codes at a time: the distances of more would not stay in the cache


class Quantised(NamedTuple):
    """Codes in the place of vectors (gradients pass straight through), their numbers, and what learning them costs."""

    codes_BND: Tensor
    index_BN: Tensor
    loss: Tensor


def straight_through(z: Tensor, codes: Tensor) -> Tensor:
    """Return the codes; their gradient goes to z as it is. Bengio et al. 2013 (arXiv:1308.3432), section 3."""
    return z + (codes - z).detach()


class VectorQuantiser(nn.Module):
    """The nearest of K learned codes. van den Oord et al. 2017 (arXiv:1711.00937), eqs. 1 to 3.

    sphere: codes and vectors are compared by direction alone (Yu et al. 2022, arXiv:2110.04627, section 3.2). Codes that
    nobody uses are moved to vectors of the batch (Dhariwal et al. 2020, arXiv:2005.00341, section 3.1).
    """

    usage_K: Tensor

    def __init__(self, num_codes: int, width: int, *, sphere: bool = True) -> None:
        super().__init__()
        self.num_codes, self.width, self.sphere = num_codes, width, sphere
        self.code_KD = nn.Parameter(functional.normalize(torch.randn(num_codes, width), dim=-1))
        self.register_buffer("usage_K", torch.ones(num_codes))

    def forward(self, z_BND: Tensor) -> Quantised:
        """Return the nearest codes; the loss draws codes to vectors, and vectors to codes a quarter as much."""
        z_BND = self._placed(z_BND.float())
        index_BN = nearest(z_BND.flatten(0, 1), self._placed(self.code_KD)).reshape(z_BND.shape[:2])
        codes_BND = self.lookup(index_BN)
        drawn = functional.mse_loss(codes_BND, z_BND.detach())
        committed = functional.mse_loss(z_BND, codes_BND.detach())
        if self.training:
            self._revive(z_BND.detach().flatten(0, 1), index_BN)
        return Quantised(straight_through(z_BND, codes_BND), index_BN, drawn + COMMITMENT * committed)

    def lookup(self, index_BN: Tensor) -> Tensor:
        """Return the codes of these numbers."""
        return functional.embedding(index_BN, self._placed(self.code_KD))

    def _placed(self, x: Tensor) -> Tensor:
        return functional.normalize(x, dim=-1) if self.sphere else x

    @torch.no_grad()
    def _revive(self, z_RD: Tensor, index_BN: Tensor, momentum: float = 0.99, floor: float = 0.01) -> None:
        counts_K = torch.bincount(index_BN.flatten(), minlength=self.num_codes).to(self.usage_K.dtype)
        self.usage_K.mul_(momentum).add_(counts_K, alpha=1 - momentum)
        dead_K = (self.usage_K < floor).nonzero()[:, 0]
        if len(dead_K):
            chosen = torch.randint(len(z_RD), (len(dead_K),), device=z_RD.device)
            self.code_KD[dead_K] = z_RD[chosen].to(self.code_KD.dtype)
            self.usage_K[dead_K] = 1.0


@torch.no_grad()
def nearest(z_RD: Tensor, code_KD: Tensor) -> Tensor:
    """Return for each row the number of the nearest code: of |z - c|^2 only what differs between codes is computed."""
    half_K = code_KD.square().sum(1) / 2
    return torch.cat([(rows_RD @ code_KD.T - half_K).argmax(1) for rows_RD in torch.split(z_RD, _SEARCH_ROWS)])


class FiniteScalarQuantiser(nn.Module):
    """Round each channel to a few levels: nothing is searched, learned or left unused. Mentzer et al. 2024 (arXiv:2309.15505), section 3.

    Levels 8, 8, 8, 8, 4 make exactly 16,384 codes.
    """

    level_D: Tensor
    basis_D: Tensor

    def __init__(self, levels: Sequence[int] = (8, 8, 8, 8, 4)) -> None:
        super().__init__()
        level_D = torch.tensor(levels)
        self.register_buffer("level_D", level_D, persistent=False)
        self.register_buffer(
            "basis_D", torch.cat([torch.ones(1, dtype=torch.long), level_D.cumprod(0)[:-1]]), persistent=False
        )
        self.width = len(levels)
        self.num_codes = int(level_D.prod())

    def forward(self, z_BND: Tensor) -> Quantised:
        """Return the grid points, each channel in [-1, 1]; there is nothing to learn, so the loss is 0."""
        bounded_BND = self._bounded(z_BND.float())
        point_BND = straight_through(bounded_BND, bounded_BND.round())
        half_D = self.level_D // 2
        digit_BND = (point_BND.detach() + half_D).long()
        return Quantised(point_BND / half_D, (digit_BND * self.basis_D).sum(-1), point_BND.new_zeros(()))

    def lookup(self, index_BN: Tensor) -> Tensor:
        """Return the grid points of these numbers."""
        digit_BND = (index_BN[..., None] // self.basis_D) % self.level_D
        half_D = self.level_D // 2
        return (digit_BND - half_D) / half_D

    def _bounded(self, z_BND: Tensor) -> Tensor:
        """Squash each channel so that rounding gives exactly its levels; even numbers of levels are not symmetric."""
        half_D = (self.level_D - 1) * (1 - 1e-3) / 2
        offset_D = torch.where(self.level_D % 2 == 0, 0.5, 0.0)
        return (z_BND + (offset_D / half_D).atanh()).tanh() * half_D - offset_D


class ResidualQuantiser(nn.Module):
    """Several codebooks, each for what those before it left over. Lee et al. 2022 (arXiv:2203.01941), section 3.1."""

    def __init__(self, num_codes: int, width: int, num_levels: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList(VectorQuantiser(num_codes, width, sphere=False) for _ in range(num_levels))
        self.num_codes, self.width = num_codes, width

    def forward(self, z_BND: Tensor) -> Quantised:
        """Return the sum of all levels' codes, and their numbers [B, N, L], the coarse ones first."""
        left_BND = z_BND.float()
        indices, losses = [], []
        for level in self.levels:
            found = level(left_BND)
            left_BND = left_BND - found.codes_BND.detach()
            indices.append(found.index_BN)
            losses.append(found.loss)
        index_BNL = torch.stack(indices, -1)
        codes_BND = straight_through(z_BND.float(), self.lookup(index_BNL))
        return Quantised(codes_BND, index_BNL, torch.stack(losses).mean())

    def lookup(self, index_BN: Tensor) -> Tensor:
        """Return the codes of these numbers [B, N, L]; fewer levels give a coarser answer."""
        used = self.levels[: index_BN.shape[-1]]
        parts = [level.lookup(index_BN[..., number]) for number, level in enumerate(used)]  # type: ignore[operator]
        return torch.stack(parts).sum(0)
