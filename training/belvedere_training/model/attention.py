"""Attention and the pre-norm layer around it, for every transformer of the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

# B batch, T queries, A of them that are wanted, S keys, D width, N heads, K width of a head

# An attention mask is boolean and broadcasts to [B, N, T, S]; true where a query may look at a key. None: everywhere.
Mask = Tensor | None


def split_heads(x_BTD: Tensor, num_heads: int) -> Tensor:
    """Return [B, N, T, K]."""
    return x_BTD.reshape(*x_BTD.shape[:2], num_heads, -1).transpose(1, 2)


def at(x_BTD: Tensor, wanted_BA: Tensor) -> Tensor:
    """Return [B, A, D]: of each sequence the tokens at these places."""
    return x_BTD.gather(1, wanted_BA[:, :, None].expand(-1, -1, x_BTD.shape[2]))


def _rows(mask: Tensor, wanted_BA: Tensor, length: int) -> Tensor:
    """Return [B, N, A, S]: what a mask lets these places look at."""
    whole_BNTS = mask.expand(wanted_BA.shape[0], -1, length, -1)
    place_BNAS = wanted_BA[:, None, :, None].expand(-1, whole_BNTS.shape[1], -1, whole_BNTS.shape[3])
    return whole_BNTS.gather(2, place_BNAS)


class SelfAttention(nn.Module):
    """Multi-head attention among the tokens of one sequence. Vaswani et al. 2017 (arXiv:1706.03762), section 3.2."""

    def __init__(self, width: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.query_key_value = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x_BTD: Tensor, mask: Mask = None, wanted_BA: Tensor | None = None) -> Tensor:
        """Return the attended values. wanted_BA: the places that look, all if None; the mask is that of all."""
        heads_BTD = self.query_key_value(x_BTD).chunk(3, dim=-1)
        if wanted_BA is not None:
            heads_BTD = (at(heads_BTD[0], wanted_BA), *heads_BTD[1:])
            mask = None if mask is None else _rows(mask, wanted_BA, x_BTD.shape[1])
        query_BNTK, key_BNTK, value_BNTK = (split_heads(h, self.num_heads) for h in heads_BTD)
        mixed_BNTK = functional.scaled_dot_product_attention(
            query_BNTK,
            key_BNTK,
            value_BNTK,
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
        )
        out: Tensor = self.out(mixed_BNTK.transpose(1, 2).flatten(2))
        return out


class CrossAttention(nn.Module):
    """Queries of one modality look at the tokens of another. Vaswani et al. 2017, section 3.2.3."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x_BTD: Tensor, context_BSD: Tensor, mask: Mask = None) -> Tensor:
        """Return what each of x finds in the context."""
        key_BNSK, value_BNSK = (split_heads(h, self.num_heads) for h in self.key_value(context_BSD).chunk(2, dim=-1))
        query_BNTK = split_heads(self.query(x_BTD), self.num_heads)
        mixed_BNTK = functional.scaled_dot_product_attention(query_BNTK, key_BNSK, value_BNSK, attn_mask=mask)
        out: Tensor = self.out(mixed_BNTK.transpose(1, 2).flatten(2))
        return out


def mlp(width: int) -> nn.Sequential:
    """Return the two-layer network of a transformer block."""
    return nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))


class TransformerLayer(nn.Module):
    """Pre-norm attention and MLP. Xiong et al. 2020 (arXiv:2002.04745), fig. 1(b)."""

    def __init__(self, width: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = SelfAttention(width, num_heads, dropout)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = mlp(width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x_BTD: Tensor, mask: Mask = None) -> Tensor:
        """Return the tokens after one layer."""
        x_BTD = x_BTD + self.drop(self.attention(self.attention_norm(x_BTD), mask))
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


def run(layers: Iterable[nn.Module], x_BTD: Tensor, mask: Mask, *, recompute: bool) -> Tensor:
    """Return the tokens after all layers. recompute: keep only each layer's input for the backward pass.

    Chen et al. 2016 (arXiv:1604.06174), section 4; the random state of dropout is replayed.
    """
    for layer in layers:
        x_BTD = checkpointed(layer, x_BTD, mask) if recompute else layer(x_BTD, mask)
    return x_BTD


def checkpointed(layer: Callable[..., Any], *inputs: Any) -> Any:
    """Return layer(*inputs), whose inner activations are computed again in the backward pass."""
    return checkpoint(layer, *inputs, use_reentrant=False)
