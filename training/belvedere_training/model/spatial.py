"""A learned view of the picture, and the stages in which a run comes to it: whole pictures, the view, everything at any resolution.

The view is Jaderberg et al. 2015 (arXiv:1506.02025), section 3; it starts as the identity, so the loss goes on
where the stage before left it.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

# B pictures, S edge of the picture and of its view, R and C rows and columns of a map

Stage = Literal["fixed", "warped", "joint"]
STAGES: tuple[Stage, ...] = ("fixed", "warped", "joint")
SHARES = (0.5, 0.7)
"""Shares of the budget at which the second and the third stage begin."""
VIEW_FACTOR = 0.05  # of the learning rate: a view that moves fast shows the layers another picture at each step
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
            nn.AvgPool2d(2),  # to 4 x 4; the adaptive one adds up in another order each time on a GPU
            nn.Flatten(),
        )
        self.affine = nn.Linear(16 * _WIDTH, 6)
        nn.init.zeros_(self.affine.weight)
        with torch.no_grad():
            self.affine.bias.copy_(torch.tensor([1.0, 0, 0, 0, 1, 0]))

    def forward(self, pixels_B3SS: Tensor) -> Tensor:
        """Return the view [B, 3, S, S]."""
        return _sampled(pixels_B3SS, self.affines(pixels_B3SS))

    def affines(self, pixels_B3SS: Tensor) -> Tensor:
        """Return where in the picture each place of the view lies, [B, 2, 3]."""
        # Half formats are too coarse for places: at 224 pixels bfloat16 tells only every other one from its neighbour.
        with torch.autocast(pixels_B3SS.device.type, enabled=False):
            small_B3TT = functional.adaptive_avg_pool2d(pixels_B3SS.float(), _THUMBNAIL)
            affine_B6: Tensor = self.affine(self.look(small_B3TT))
        return affine_B6.reshape(-1, 2, 3)

    def in_picture(self, map_BRC: Tensor, pixels_B3SS: Tensor) -> Tensor:
        """Return a map of the view as one of the picture, nothing where the view does not reach."""
        affine_B23 = self.affines(pixels_B3SS).detach()
        last_B13 = affine_B23.new_tensor([0.0, 0.0, 1.0]).expand(len(affine_B23), 1, 3)
        inverse_B23 = torch.linalg.pinv(torch.cat([affine_B23, last_B13], 1))[:, :2]
        return _sampled(map_BRC[:, None], inverse_B23, outside="zeros")[:, 0]


def _sampled(picture_BDRC: Tensor, affine_B23: Tensor, outside: str = "border") -> Tensor:
    with torch.autocast(picture_BDRC.device.type, enabled=False):
        grid_BRC2 = functional.affine_grid(affine_B23, list(picture_BDRC.shape), align_corners=False)
        return functional.grid_sample(picture_BDRC.float(), grid_BRC2, padding_mode=outside, align_corners=False)


def stage_at(pairs: int, budget: int) -> Stage:
    """Return the stage at this position of a run: a function of the position, so that a resumed run agrees.

    fixed: no view, all else learns. warped: of the vision tower the view alone learns. joint: everything, at any resolution.
    """
    return STAGES[sum(pairs >= share * budget for share in SHARES)]


def enter(tower: nn.Module, stage: Stage) -> bool:
    """Let the weights of a vision transformer learn that the stage is for; return whether that changed any."""
    tower.stage = stage  # type: ignore[assignment]
    changed = False
    for name, weight in tower.named_parameters():
        learns = stage != ("fixed" if name.startswith("view.") else "warped")
        changed |= weight.requires_grad != learns
        weight.requires_grad_(learns)
        if not learns:
            weight.grad = None
    return changed
