"""The dual-stream encoder: each tower sees only its own modality; both end in one space."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from belvedere_training.model.config import ModelConfig
from belvedere_training.model.resnet import ResNetTower
from belvedere_training.model.resolution import encode_each
from belvedere_training.model.text import TextTower
from belvedere_training.model.tower import Encoded
from belvedere_training.model.vision import ConvTower
from belvedere_training.model.vit import VitTower

# B batch, S picture edge, T tokens, E embedding

MAX_LOG_SCALE = math.log(100)
VISION_TOWERS: dict[str, Any] = {"conv": ConvTower, "vit": VitTower, "resnet": ResNetTower}


class DualStream(nn.Module):
    """Two towers, a projection each, and the learnable temperature. Radford et al. 2021 (arXiv:2103.00020), section 2.3."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.vision = VISION_TOWERS[config.vision.kind](config.vision)
        self.text = TextTower(config.text)
        self.vision_projection = nn.Linear(self.vision.pooled_width, config.embed_dim, bias=False)
        self.text_projection = nn.Linear(self.text.pooled_width, config.embed_dim, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def encode_image(self, pixels_B3SS: Tensor, resolutions: Sequence[int] | None = None) -> Encoded:
        """Return what the vision tower makes of normalised pictures, each at its own resolution where these are given."""
        encoded: Encoded = (
            self.vision.encode(pixels_B3SS)
            if resolutions is None
            else encode_each(self.vision, pixels_B3SS, resolutions)
        )
        return encoded

    def embed_image(self, pixels_B3SS: Tensor) -> Tensor:
        """Return unit vectors [B, E] of normalised pictures."""
        return self.project_image(self.vision.encode(pixels_B3SS))

    def embed_text(self, tokens_BT: Tensor) -> Tensor:
        """Return unit vectors [B, E] of token ids."""
        return self.project_text(self.text.encode(tokens_BT))

    def project_image(self, image: Encoded) -> Tensor:
        """Return the unit vectors of what the vision tower made."""
        return functional.normalize(self.vision_projection(image.pooled_BD).float(), dim=-1)

    def project_text(self, text: Encoded) -> Tensor:
        """Return the unit vectors of what the text tower made."""
        return functional.normalize(self.text_projection(text.pooled_BD).float(), dim=-1)

    def scale(self) -> Tensor:
        """Return the factor on similarities: the exponential of the parameter, at most 100."""
        return self.log_scale.clamp(max=MAX_LOG_SCALE).exp()

    def forward(
        self, pixels_B3SS: Tensor, tokens_BT: Tensor, resolutions: Sequence[int] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return image_BE, text_BE and the scale."""
        image = self.encode_image(pixels_B3SS, resolutions)
        return self.project_image(image), self.embed_text(tokens_BT), self.scale()


def multiply_adds(model: DualStream) -> dict[str, int]:
    """Return the multiply-adds of one picture and of one text of full context, counted at convolutions and linear layers."""
    counts = {"image": 0, "text": 0}
    current = "image"

    def count(module: nn.Module, _: tuple[Tensor, ...], out: Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            counts[current] += out[0].numel() * module.weight[0].numel()
        elif isinstance(module, nn.Linear):
            counts[current] += out[0].numel() * module.in_features

    hooks = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            size = model.config.vision.image_size
            model.embed_image(torch.zeros(1, 3, size, size))
            current = "text"
            model.embed_text(torch.ones(1, model.config.text.max_length, dtype=torch.long))
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    return counts
