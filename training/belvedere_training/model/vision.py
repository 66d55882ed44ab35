"""A convolutional vision tower that is cheap on CPU cores and on small pictures."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from belvedere_training.model.config import ConvConfig
from belvedere_training.model.tower import Encoded

# B batch, C channels, H and W rows and columns of the grid, T = H * W tokens, D width


def conv_norm(num_in: int, num_out: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """Return a convolution without bias and its batch norm."""
    convolution = nn.Conv2d(num_in, num_out, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(num_out))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut. He et al. 2016 (arXiv:1512.03385), fig. 2; batch norm as in fig. 2 there."""

    def __init__(self, num_in: int, num_out: int, stride: int = 1, expansion: int = 1) -> None:
        super().__init__()
        self.first = conv_norm(num_in, expansion * num_out, 3, stride)
        self.second = conv_norm(expansion * num_out, num_out, 3)
        same = stride == 1 and num_in == num_out
        self.shortcut = nn.Identity() if same else conv_norm(num_in, num_out, 1, stride)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the block's output on the (strided) grid."""
        return torch.relu(self.second(torch.relu(self.first(x_BCHW))) + self.shortcut(x_BCHW))


def encoded(grid_BCHW: Tensor, pooled_BD: Tensor) -> Encoded:
    """Return a grid of features as tokens, row after row."""
    tokens_BTD = grid_BCHW.flatten(2).transpose(1, 2)
    valid_BT = torch.ones(tokens_BTD.shape[:2], dtype=torch.bool, device=grid_BCHW.device)
    return Encoded(tokens_BTD, valid_BT, pooled_BD, (grid_BCHW.shape[2], grid_BCHW.shape[3]))


SILENT_EXPANSION = 8


def silent_block(width: int) -> ResidualBlock:
    """Return a wide block that passes its (non-negative) input on unchanged: the last norm scales by zero.

    Goyal et al. 2017 (arXiv:1706.02677), section 5.1, start residual branches this way.
    """
    block = ResidualBlock(width, width, expansion=SILENT_EXPANSION)
    norm = block.second[1]
    assert isinstance(norm, nn.BatchNorm2d)
    nn.init.zeros_(norm.weight)
    return block


class ConvTower(nn.Module):
    """Stem and residual stages, each halving the grid; the pooled vector keeps where things are."""

    def __init__(self, config: ConvConfig) -> None:
        super().__init__()
        stages: list[nn.Module] = [conv_norm(3, config.stem_width, 5, 2), nn.ReLU()]
        width = config.stem_width
        for stage, (stage_width, num_blocks) in enumerate(zip(config.widths, config.blocks, strict=True)):
            stages.append(ResidualBlock(width, stage_width, 2))
            stages.extend(ResidualBlock(stage_width, stage_width) for _ in range(num_blocks - 1))
            if stage == 0:
                stages.extend(silent_block(stage_width) for _ in range(config.deepen))
            width = stage_width
        self.stages = nn.Sequential(*stages)
        self.grid = config.image_size // config.stride
        self.pool = nn.Linear(width * self.grid**2, config.pooled_width)
        self.token_width = width
        self.pooled_width = config.pooled_width

    def encode(self, batch: Tensor) -> Encoded:
        """Return the grid as tokens and its pooled vector. batch: normalised pixels [B, 3, S, S]."""
        grid_BCHW = self.stages(batch)
        pooled_BCHW = grid_BCHW
        if grid_BCHW.shape[-1] != self.grid:  # another resolution than the native one: what stands where is kept
            size = (self.grid, self.grid)
            pooled_BCHW = functional.interpolate(grid_BCHW, size, mode="bilinear", align_corners=False)
        return encoded(grid_BCHW, self.pool(pooled_BCHW.flatten(1)))
