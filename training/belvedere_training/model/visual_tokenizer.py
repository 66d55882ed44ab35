"""Pictures to numbers and back, with one set of weights for both ways.

The layers that encode also decode, and patches are embedded and painted by the same matrix, transposed: understanding and
generating share their parameters, and meet in the latent state.
"""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from belvedere_training.model.attention import TransformerLayer
from belvedere_training.model.config import Settings, check_heads, check_multiple
from belvedere_training.model.patches import patchify, unpatchify
from belvedere_training.model.quantize import FiniteScalarQuantiser, Quantised, ResidualQuantiser, VectorQuantiser

# B pictures, S picture edge, N patches, P values of a patch, D width, C width of a code


class TokenizerConfig(Settings):
    """How pictures become tokens. `continuous` keeps the latent state as it is."""

    image_size: Annotated[int, Field(ge=16, le=1024)] = 224
    patch_size: Annotated[int, Field(ge=2, le=64)] = 16
    hidden_size: Annotated[int, Field(ge=8)] = 256
    num_layers: Annotated[int, Field(ge=0)] = 4
    num_heads: Annotated[int, Field(ge=1)] = 4
    quantiser: Literal["vq", "fsq", "residual", "continuous"] = "fsq"
    num_codes: Annotated[int, Field(ge=2, description="codes of vq, and of each level of residual")] = 8192
    code_width: Annotated[int, Field(ge=2, description="width of a code of vq, residual and continuous")] = 8
    levels: Annotated[tuple[int, ...], Field(description="levels of each channel of fsq")] = (8, 8, 8, 8, 4)
    depth: Annotated[int, Field(ge=1, le=8, description="levels of the hierarchy of residual")] = 4

    @model_validator(mode="after")
    def _fits(self) -> Self:
        check_multiple(self.image_size, self.patch_size, "patchSize")
        check_heads(self.hidden_size, self.num_heads)
        if min(self.levels) < 3:
            raise ValueError(f"levels is {list(self.levels)}; each channel needs 3 or more to be rounded to")
        return self


class Reconstruction(NamedTuple):
    """The latent state, the picture made from it, the tokens (none if continuous), and the loss."""

    z_BNC: Tensor
    pixels_B3SS: Tensor
    index_BN: Tensor | None
    loss: Tensor


class VisualTokenizer(nn.Module):
    """Encode, quantise, decode. van den Oord et al. 2017 (arXiv:1711.00937); Mentzer et al. 2024 (arXiv:2309.15505)."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.grid = config.image_size // config.patch_size
        width = config.hidden_size
        self.quantiser = _quantiser(config)
        code_width = config.code_width if self.quantiser is None else int(self.quantiser.width)  # type: ignore[arg-type]
        self.patch = nn.Linear(3 * config.patch_size**2, width, bias=False)
        self.code = nn.Linear(width, code_width, bias=False)
        self.position_ND = nn.Parameter(torch.randn(self.grid**2, width) * 0.02)
        self.direction_2D = nn.Parameter(torch.randn(2, width) * 0.02)  # tells the layers which way they work
        self.layers = nn.ModuleList(TransformerLayer(width, config.num_heads) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(width)

    def encode(self, pixels_B3SS: Tensor) -> Tensor:
        """Return the latent state [B, N, C] before it is quantised."""
        z_BNC: Tensor = self.code(self._run(self.patch(patchify(pixels_B3SS, self.config.patch_size)), 0))
        return z_BNC

    def decode(self, codes_BNC: Tensor) -> Tensor:
        """Return the pictures of codes."""
        hidden_BND = self._run(functional.linear(codes_BNC, self.code.weight.T), 1)
        return unpatchify(functional.linear(hidden_BND, self.patch.weight.T), self.grid, self.grid)

    def tokens(self, pixels_B3SS: Tensor) -> Tensor:
        """Return the numbers of the pictures: [B, N], or [B, N, depth] of a hierarchy."""
        return self._quantised(self.encode(pixels_B3SS)).index_BN

    def picture(self, index_BN: Tensor) -> Tensor:
        """Return the pictures of numbers."""
        assert self.quantiser is not None
        return self.decode(self.quantiser.lookup(index_BN))  # type: ignore[operator]

    def forward(self, pixels_B3SS: Tensor) -> Reconstruction:
        """Return latent state, reconstruction, tokens, and the squared error with what the quantiser asks for."""
        z_BNC = self.encode(pixels_B3SS)
        found = None if self.quantiser is None else self._quantised(z_BNC)
        painted_B3SS = self.decode(z_BNC if found is None else found.codes_BND)
        loss = functional.mse_loss(painted_B3SS, pixels_B3SS)
        if found is None:
            return Reconstruction(z_BNC, painted_B3SS, None, loss)
        return Reconstruction(z_BNC, painted_B3SS, found.index_BN, loss + found.loss)

    def _quantised(self, z_BNC: Tensor) -> Quantised:
        assert self.quantiser is not None
        found: Quantised = self.quantiser(z_BNC)
        return found

    def _run(self, x_BND: Tensor, direction: int) -> Tensor:
        x_BND = x_BND + self.position_ND + self.direction_2D[direction]
        for layer in self.layers:
            x_BND = layer(x_BND)
        out: Tensor = self.norm(x_BND)
        return out


def _quantiser(config: TokenizerConfig) -> nn.Module | None:
    if config.quantiser == "vq":
        return VectorQuantiser(config.num_codes, config.code_width)
    if config.quantiser == "fsq":
        return FiniteScalarQuantiser(config.levels)
    if config.quantiser == "residual":
        return ResidualQuantiser(config.num_codes, config.code_width, config.depth)
    return None


def usage(index_BN: Tensor, num_codes: int) -> float:
    """Return the share of codes that occur. High use needs varied pictures: flat ones have few patches to tell."""
    return len(torch.unique(index_BN)) / num_codes
