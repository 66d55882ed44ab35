"""A bottleneck residual network. He et al. 2016 (arXiv:1512.03385), table 1."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from belvedere_training.model.config import ResNetConfig
from belvedere_training.model.tower import Encoded
from belvedere_training.model.vision import conv_norm, encoded

# B pictures, C channels, H and W rows and columns of the grid

_WIDTH, _EXPANSION = 64, 4


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions around a shortcut; the stride is in the 3x3 one. He et al. 2016, fig. 5 right."""

    def __init__(self, num_in: int, width: int, stride: int) -> None:
        super().__init__()
        num_out = _EXPANSION * width
        self.reduce = conv_norm(num_in, width, 1)
        self.spatial = conv_norm(width, width, 3, stride)
        self.expand = conv_norm(width, num_out, 1)
        same = stride == 1 and num_in == num_out
        self.shortcut = nn.Identity() if same else conv_norm(num_in, num_out, 1, stride)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the block's output on the (strided) grid."""
        inner_BCHW = torch.relu(self.spatial(torch.relu(self.reduce(x_BCHW))))
        return torch.relu(self.expand(inner_BCHW) + self.shortcut(x_BCHW))


class ResNetTower(nn.Module):
    """Stem, stages, mean over the grid and a linear layer to output_dim."""

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        stages: list[nn.Module] = [conv_norm(3, _WIDTH, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
        num_in = _WIDTH
        for stage, num_blocks in enumerate(config.layers):
            width = _WIDTH * 2**stage
            for block in range(num_blocks):
                stages.append(Bottleneck(num_in, width, 2 if block == 0 and stage else 1))
                num_in = _EXPANSION * width
        self.stages = nn.Sequential(*stages)
        self.pool = nn.Linear(num_in, config.output_dim)
        self.token_width = num_in
        self.pooled_width = config.output_dim

    def encode(self, batch: Tensor) -> Encoded:
        """Return the grid as tokens and its pooled vector. batch: normalised pixels [B, 3, S, S]."""
        grid_BCHW = self.stages(batch)
        return encoded(grid_BCHW, self.pool(grid_BCHW.mean((2, 3))))
