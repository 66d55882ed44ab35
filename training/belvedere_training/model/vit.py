"""A vision transformer that takes pictures of one size, or tokens of pictures of many sizes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from belvedere_training.model.attention import CrossAttention, TransformerLayer, mlp, run
from belvedere_training.model.config import VitConfig
from belvedere_training.model.patches import TokenBatch, patchify
from belvedere_training.model.spatial import SpatialTransformer, Stage
from belvedere_training.model.tower import Encoded

# B pictures, N tokens, D width, P values of a patch, R and C rows and columns, H and W pixels


class AttentionPool(nn.Module):
    """One learned query over all tokens, and an MLP. Zhai et al. 2022 (arXiv:2106.04560), section 3.2."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.query_1D = nn.Parameter(torch.randn(1, width) * width**-0.5)
        self.attention = CrossAttention(width, num_heads)
        self.norm = nn.LayerNorm(width)
        self.mlp = mlp(width)

    def forward(self, tokens_BND: Tensor, valid_BN: Tensor | None) -> Tensor:
        """Return one vector a picture."""
        mask = None if valid_BN is None else valid_BN[:, None, None, :]
        query_B1D = self.query_1D.expand(tokens_BND.shape[0], 1, -1)
        pooled_B1D = self.attention(query_B1D, tokens_BND, mask)
        out: Tensor = (pooled_B1D + self.mlp(self.norm(pooled_B1D)))[:, 0]
        return out


class VitTower(nn.Module):
    """Patches, interpolated positions, pre-norm layers. Dosovitskiy et al. 2021 (arXiv:2010.11929), section 3.1.

    With pooling `class` it is the tower of CLIP (Radford et al. 2021, section 2.4), norm before the layers included.
    """

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.patch, self.grid, self.recompute = config.patch_size, config.grid, False
        values = 3 * config.patch_size**2
        with_class = config.pooling == "class"
        self.embed = nn.Linear(values, width, bias=not with_class)
        self.position_ND = nn.Parameter(torch.randn(config.grid**2, width) * 0.02)
        if with_class:
            self.class_1D = nn.Parameter(torch.randn(1, width) * width**-0.5)
            self.norm_before = nn.LayerNorm(width)
        else:
            self.pool = AttentionPool(width, config.num_heads)
        self.with_class = with_class
        self.view = SpatialTransformer() if config.view else None
        self.stage: Stage = "joint"
        self.layers = nn.ModuleList(TransformerLayer(width, config.num_heads) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(width)
        self.token_width = self.pooled_width = width

    def encode(self, batch: Tensor | TokenBatch) -> Encoded:
        """Return tokens and pooled vector of normalised pixels [B, 3, H, W], or of a batch of tokens, which have no view."""
        if isinstance(batch, TokenBatch):
            x_BND = self.embed(batch.patches_BNP) + self._positions_at(batch.centre_BN2)
            return self._encode(x_BND, batch.valid_BN, None)
        seen_B3HW: Tensor = self.view(batch) if self.view is not None and self.stage != "fixed" else batch
        rows, columns = batch.shape[2] // self.patch, batch.shape[3] // self.patch
        x_BND = self.embed(patchify(seen_B3HW, self.patch)) + self.positions(rows, columns)
        return self._encode(x_BND, None, (rows, columns))

    def _encode(self, x_BND: Tensor, valid_BN: Tensor | None, grid: tuple[int, int] | None) -> Encoded:
        attended_BN = valid_BN
        if self.with_class:
            x_BND = self.norm_before(torch.cat([self.class_1D.to(x_BND.dtype).expand(x_BND.shape[0], 1, -1), x_BND], 1))
            attended_BN = None if valid_BN is None else functional.pad(valid_BN, (1, 0), value=True)
        mask = None if attended_BN is None else attended_BN[:, None, None, :]
        x_BND = self.norm(run(self.layers, x_BND, mask, recompute=self.recompute and self.training))
        pooled_BD = x_BND[:, 0] if self.with_class else self.pool(x_BND, valid_BN)
        tokens_BND = x_BND[:, 1:] if self.with_class else x_BND
        if valid_BN is None:
            valid_BN = torch.ones(tokens_BND.shape[:2], dtype=torch.bool, device=tokens_BND.device)
        return Encoded(tokens_BND, valid_BN, pooled_BD, grid)

    def positions(self, rows: int, columns: int) -> Tensor:
        """Return the position embeddings [N, D] of a grid, interpolated where it is not the native one."""
        if (rows, columns) == (self.grid, self.grid):
            return self.position_ND
        other_1DRC = functional.interpolate(self._native(), (rows, columns), mode="bilinear", align_corners=False)
        return other_1DRC[0].flatten(1).T

    def _native(self) -> Tensor:
        return self.position_ND.T.reshape(1, -1, self.grid, self.grid)

    def _positions_at(self, centre_BN2: Tensor) -> Tensor:
        """Return [B, N, D]: the same interpolation, at any places."""
        sampled_1DBN = functional.grid_sample(
            self._native().float(),
            centre_BN2[None].float(),
            mode="bilinear",
            padding_mode="border",
            align_corners=False,
        )
        return sampled_1DBN[0].permute(1, 2, 0)
