"""What is predicted from fused tokens: whether a pair belongs together, words, and masked patches."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from belvedere_training.model.attention import TransformerLayer
from belvedere_training.model.config import PixelConfig

# B batch, T text tokens, V vocabulary, N patches, K visible patches, P values of a patch, D width


class LanguageHead(nn.Module):
    """A small transform, then the embedding table itself. Press and Wolf 2017 (arXiv:1608.05859); serves LM and MLM."""

    def __init__(self, width: int, vocab_size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.bias_V = nn.Parameter(torch.zeros(vocab_size))

    def forward(self, text_BTD: Tensor, embedding_VD: Tensor) -> Tensor:
        """Return logits over the vocabulary."""
        hidden_BTD = self.norm(functional.gelu(self.dense(text_BTD)))
        return functional.linear(hidden_BTD, embedding_VD.to(hidden_BTD.dtype), self.bias_V.to(hidden_BTD.dtype))


class PixelDecoder(nn.Module):
    """Puts a learned token where a patch was hidden and predicts its pixels. He et al. 2022 (arXiv:2111.06377), section 3."""

    def __init__(self, config: PixelConfig, vision_width: int, patch: int) -> None:
        super().__init__()
        width = config.hidden_size
        self.bridge = nn.Linear(vision_width, width)
        self.mask_token_D = nn.Parameter(torch.randn(width) * 0.02)
        self.layers = nn.ModuleList(TransformerLayer(width, config.num_heads) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, 3 * patch**2)

    def forward(self, visible_BKD: Tensor, kept_BK: Tensor, centre_BN2: Tensor) -> Tensor:
        """Return the predicted patches [B, N, P] from the tokens of those that were kept."""
        seen_BKD = self.bridge(visible_BKD)
        width = seen_BKD.shape[-1]
        mask_BND = self.mask_token_D.to(seen_BKD.dtype).expand(*centre_BN2.shape[:2], width)
        x_BND = mask_BND.scatter(1, kept_BK[..., None].expand(-1, -1, width), seen_BKD)
        x_BND = x_BND + waves(centre_BN2, width).to(x_BND.dtype)
        for layer in self.layers:
            x_BND = layer(x_BND)
        out: Tensor = self.out(self.norm(x_BND))
        return out


def waves(place_BN2: Tensor, width: int) -> Tensor:
    """Return sines and cosines of places in [-1, 1]: [B, N, width]. Vaswani et al. 2017, section 3.5, in two dims."""
    quarter = -(-width // 4)
    frequency_F = math.pi * 2.0 ** torch.linspace(0, 5, quarter, device=place_BN2.device)
    angle_BN2F = place_BN2[..., None] * frequency_F
    return torch.cat([angle_BN2F.sin(), angle_BN2F.cos()], -1).flatten(2)[..., :width]
