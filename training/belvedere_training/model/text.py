"""A small text transformer; padding is masked inside, so a longer padded context gives the same answer."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from belvedere_training.model.config import TextConfig
from belvedere_training.model.tower import Encoded

# B batch, T tokens, D width, N heads, K width of a head

PAD_ID = 0
_INITIAL_STD = (
    0.005  # small beside what training adds: the noise of rare tokens is never trained away (training/LOG.md)
)


class SelfAttention(nn.Module):
    """Multi-head attention over the valid tokens. Vaswani et al. 2017 (arXiv:1706.03762), section 3.2."""

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.query_key_value = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x_BTD: Tensor, attend_B11T: Tensor) -> Tensor:
        """Return the attended values."""
        heads_BTD = self.query_key_value(x_BTD).chunk(3, dim=-1)
        query_BNTK, key_BNTK, value_BNTK = (h.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for h in heads_BTD)
        mixed_BNTK = functional.scaled_dot_product_attention(
            query_BNTK,
            key_BNTK,
            value_BNTK,
            attn_mask=attend_B11T,
            dropout_p=self.dropout if self.training else 0.0,
        )
        out: Tensor = self.out(mixed_BNTK.transpose(1, 2).flatten(2))
        return out


class TransformerLayer(nn.Module):
    """Pre-norm attention and MLP. Xiong et al. 2020 (arXiv:2002.04745), fig. 1(b)."""

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = SelfAttention(width, num_heads, dropout)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.drop = nn.Dropout(dropout)

    def forward(self, x_BTD: Tensor, attend_B11T: Tensor) -> Tensor:
        """Return the tokens after one layer."""
        x_BTD = x_BTD + self.drop(self.attention(self.attention_norm(x_BTD), attend_B11T))
        out: Tensor = x_BTD + self.drop(self.mlp(self.mlp_norm(x_BTD)))
        return out


def silent_layer(width: int, num_heads: int, dropout: float) -> TransformerLayer:
    """Return a layer that passes its input on unchanged: both output projections are zero."""
    layer = TransformerLayer(width, num_heads, dropout)
    last = layer.mlp[2]
    assert isinstance(last, nn.Linear)
    for projection in (layer.attention.out, last):
        nn.init.zeros_(projection.weight)
        nn.init.zeros_(projection.bias)
    return layer


class TextTower(nn.Module):
    """Token and position embeddings, transformer layers, mean over the valid tokens."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.vocab_size, config.width, padding_idx=PAD_ID)
        self.position_TD = nn.Parameter(torch.randn(config.context_length, config.width) * _INITIAL_STD)
        nn.init.normal_(self.embedding.weight, std=_INITIAL_STD)
        layers = [TransformerLayer(config.width, config.heads, config.dropout) for _ in range(config.layers)]
        layers += [silent_layer(config.width, config.heads, config.dropout) for _ in range(config.deepen)]
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(config.width)
        self.token_width = config.width
        self.pooled_width = config.width

    def encode(self, batch: Tensor) -> Encoded:
        """Return the tokens and their mean. batch: token ids [B, T], PAD_ID where there is none."""
        valid_BT = batch != PAD_ID
        # The first place is always attended to: a row of padding alone would otherwise divide nothing by nothing.
        attend_BT = valid_BT | (torch.arange(batch.shape[1], device=batch.device) == 0)
        x_BTD = self.embedding(batch) + self.position_TD[: batch.shape[1]]
        for layer in self.layers:
            x_BTD = layer(x_BTD, attend_BT[:, None, None, :])
        x_BTD = self.norm(x_BTD)
        weight_BT1 = valid_BT[..., None].to(x_BTD.dtype)
        pooled_BD = (x_BTD * weight_BT1).sum(1) / weight_BT1.sum(1).clamp(min=1)
        return Encoded(x_BTD, valid_BT, pooled_BD)
