"""Resolution in stages: a fixed one, then a learned view of the picture, then everything together.

The learned view is Jaderberg et al. 2015 (arXiv:1506.02025), section 3; it starts as the identity, so the loss goes on
where the stage before left it.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from belvedere_training.model.resolution import resize
from belvedere_training.model.tower import Encoded
from belvedere_training.model.vit import VitTower

# B pictures, S and R edges of the picture and of the view

Stage = Literal["fixed", "warped", "joint"]
STAGES: tuple[Stage, ...] = ("fixed", "warped", "joint")
_THUMBNAIL, _WIDTH = 32, 16


class SpatialTransformer(nn.Module):
    """Looks at a small copy of the picture, and from it turns, scales and shifts the picture itself."""

    def __init__(self) -> None:
        super().__init__()
        self.look = nn.Sequential(
            nn.Conv2d(3, _WIDTH, 5, 2, 2),
            nn.ReLU(),
            nn.Conv2d(_WIDTH, _WIDTH, 3, 2, 1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
        )
        self.affine = nn.Linear(16 * _WIDTH, 6)
        nn.init.zeros_(self.affine.weight)
        with torch.no_grad():
            self.affine.bias.copy_(torch.tensor([1.0, 0, 0, 0, 1, 0]))

    def forward(self, pixels_B3SS: Tensor, resolution: int) -> Tensor:
        """Return the view [B, 3, R, R]."""
        affine_B23 = self.affine(self.look(resize(pixels_B3SS, _THUMBNAIL))).reshape(-1, 2, 3)
        small_B3RR = resize(pixels_B3SS, resolution)  # smoothed first: sampling alone would skip pixels
        grid_BRR2 = functional.affine_grid(affine_B23, list(small_B3RR.shape), align_corners=False)
        return functional.grid_sample(small_B3RR, grid_BRR2, padding_mode="border", align_corners=False)


class ProgressiveTower(nn.Module):
    """A vision transformer behind the learned view.

    fixed: no view, the tower learns at one resolution. warped: the view alone learns. joint: both learn, at any resolution.
    """

    def __init__(self, tower: VitTower, resolution: int) -> None:
        super().__init__()
        self.tower, self.view = tower, SpatialTransformer()
        self.resolution = resolution
        self.token_width, self.pooled_width = tower.token_width, tower.pooled_width
        self.stage: Stage = "fixed"
        self.enter("fixed")

    def enter(self, stage: Stage) -> None:
        """Begin a stage: choose what learns."""
        self.stage = stage
        self.tower.requires_grad_(stage != "warped")
        self.view.requires_grad_(stage != "fixed")

    def encode(self, batch: Tensor, resolution: int | None = None) -> Encoded:
        """Return tokens and pooled vector of normalised pixels. resolution: another than the fixed one, in the joint stage."""
        assert resolution in (None, self.resolution) or self.stage == "joint", (
            "other resolutions come in the joint stage"
        )
        size = resolution or self.resolution
        seen_B3RR = resize(batch, size) if self.stage == "fixed" else self.view(batch, size)
        return self.tower.encode(seen_B3RR)


def stage_at(pairs: int, budget: int, shares: tuple[float, float] = (0.5, 0.7)) -> Stage:
    """Return the stage at this position of a run: a function of the position, so that a resumed run agrees."""
    return STAGES[sum(pairs >= share * budget for share in shares)]
