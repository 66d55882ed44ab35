"""A text transformer; padding is masked inside, so a longer padded context gives the same answer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from belvedere_training.model.attention import TransformerLayer, run, silent_layer
from belvedere_training.model.config import TextConfig
from belvedere_training.model.tower import Encoded

# B batch, T tokens, D width

PAD_ID = 0
_INITIAL_STD = (
    0.005  # small beside what training adds: the noise of rare tokens is never trained away (training/LOG.md)
)


class TextTower(nn.Module):
    """Token and position embeddings, transformer layers, and the mean over the valid tokens or the last of them."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.causal = config.causal
        self.recompute = False
        width = config.hidden_size
        self.embedding = nn.Embedding(config.vocab_size, width, padding_idx=PAD_ID)
        self.position_TD = nn.Parameter(torch.randn(config.max_length, width) * _INITIAL_STD)
        nn.init.normal_(self.embedding.weight, std=_INITIAL_STD)
        layers = [TransformerLayer(width, config.num_heads, config.dropout) for _ in range(config.num_layers)]
        layers += [silent_layer(width, config.num_heads, config.dropout) for _ in range(config.deepen)]
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(width)
        self.token_width = width
        self.pooled_width = width

    def encode(self, batch: Tensor, causal: bool | None = None) -> Encoded:
        """Return the tokens and their pooled vector. batch: token ids [B, T], PAD_ID where there is none.

        causal: whether a token sees only those before it; the tower's own setting if None.
        """
        return self.encode_embedded(self.embedding(batch), batch != PAD_ID, causal)

    def encode_embedded(self, embedded_BTD: Tensor, valid_BT: Tensor, causal: bool | None = None) -> Encoded:
        """Return the same from embedded tokens without positions: learned prompts enter here."""
        causal = self.causal if causal is None else causal
        length = embedded_BTD.shape[1]
        x_BTD = embedded_BTD + self.position_TD[:length]
        x_BTD = run(self.layers, x_BTD, _mask(valid_BT, causal), recompute=self.recompute and self.training)
        x_BTD = self.norm(x_BTD)
        pooled_BD = _last(x_BTD, valid_BT) if causal else _mean(x_BTD, valid_BT)
        return Encoded(x_BTD, valid_BT, pooled_BD)


def _mask(valid_BT: Tensor, causal: bool) -> Tensor:
    length = valid_BT.shape[1]
    # The first place is always attended to: a row of padding alone would otherwise divide nothing by nothing.
    attend_BT = valid_BT | (torch.arange(length, device=valid_BT.device) == 0)
    attend_B11T = attend_BT[:, None, None, :]
    if not causal:
        return attend_B11T
    return attend_B11T & torch.ones(length, length, dtype=torch.bool, device=valid_BT.device).tril()


def _mean(x_BTD: Tensor, valid_BT: Tensor) -> Tensor:
    weight_BT1 = valid_BT[..., None].to(x_BTD.dtype)
    return (x_BTD * weight_BT1).sum(1) / weight_BT1.sum(1).clamp(min=1)


def _last(x_BTD: Tensor, valid_BT: Tensor) -> Tensor:
    place_T = torch.arange(valid_BT.shape[1], device=valid_BT.device)
    last_B = (valid_BT * place_T).amax(1)
    return x_BTD.gather(1, last_B[:, None, None].expand(-1, 1, x_BTD.shape[-1]))[:, 0]
