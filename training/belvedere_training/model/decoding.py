"""The decoder in steps: what a picture leaves for every word, and the next word from what earlier words left.

Both parts compute what `VisionLanguageModel.fuse_encoded(..., causal=True)` does, keys and values of earlier tokens given.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from belvedere_training.model.attention import SelfAttention, split_heads
from belvedere_training.model.blocked import quartered
from belvedere_training.model.config import ModelConfig
from belvedere_training.model.text import PAD_ID
from belvedere_training.model.tower import Encoded
from belvedere_training.model.vision_language import VisionLanguageModel

# B sequences, N image tokens, M image keys, T new tokens, P past tokens, D width, V vocabulary, H heads, K width of a head
# L layers that keep text (the text tower's, then fusion's), F layers that keep the picture (fusion's); 2: key and value


def decodes(config: ModelConfig) -> bool:
    """Return whether the model can write: its text meets the picture, through keys that no text has a say in."""
    if config.topology == "dual" or not config.fusion.num_layers:
        return False
    # `top` chooses keys by the whole text, later words included; the halves of `hybrid` would keep unequal numbers of keys.
    attend = config.fusion.attend
    return attend == "full" or config.topology == "unified" or (attend == "pooled" and config.topology == "fusion")


class DecodeState(nn.Module):
    """Keys and values of a picture for each layer of fusion. They are the same for every text."""

    def __init__(self, model: VisionLanguageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, features: Tensor) -> Tensor:
        """Return [B, M, F, 2, D] of the vision tower's tokens [B, N, Dv]."""
        fuser = self.model.fuser
        image_BND = fuser.bridge(features) + fuser.modality_2D[0]
        pooled = fuser.attend == "pooled" and "fusion" in fuser.modes
        grid = square(features.shape[1]) if pooled else None
        kept = []
        blocks: list[Any] = list(fuser.blocks)
        for block, mode in zip(blocks, fuser.modes, strict=True):
            if mode == "unified":
                heads = block.self_attention.query_key_value(block.self_norm(image_BND)).chunk(3, -1)
                kept.append(torch.stack(heads[1:], 2))
            else:
                keys_BMD = quartered(image_BND, grid, fuser.attend, image_BND)
                kept.append(torch.stack(block.cross_attention.key_value(keys_BMD).chunk(2, -1), 2))
            # Where text is written the picture sees no text, in every topology.
            image_BND = block(image_BND, None)
        return torch.stack(kept, 2)


class DecodeStep(nn.Module):
    """Some new tokens of each sequence at once: one when a text is continued, several when it begins."""

    def __init__(self, model: VisionLanguageModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, tokens: Tensor, counts: Tensor, starts: Tensor, past: Tensor, picture: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return logits [B, V] of the word after each sequence's last token, and what its new tokens leave, [B, T, L, 2, D].

        tokens [B, T]: new ones, the first counts [B] of each row are real; starts [B]: how many came before them,
        whose keys and values are the first rows of past [B, P, L, 2, D]; picture [B, M, F, 2, D]: of `DecodeState`.
        """
        text, fuser = self.model.text, self.model.fuser
        place_T = torch.arange(tokens.shape[1], device=tokens.device)
        place_BT = (starts[:, None] + place_T).clamp(max=text.position_TD.shape[0] - 1)
        x_BTD = text.embedding(tokens) + text.position_TD[place_BT]
        mask_B1TS = step_mask(tokens, starts, past.shape[1])
        fresh: list[Tensor] = []
        layers: list[Any] = list(text.layers)
        for layer in layers:
            mixed_BTD, own = attended(
                layer.attention, layer.attention_norm(x_BTD), past[:, :, len(fresh)], mask_B1TS, None
            )
            x_BTD = x_BTD + mixed_BTD
            x_BTD = x_BTD + layer.mlp(layer.mlp_norm(x_BTD))
            fresh.append(own)
        x_BTD = text.norm(x_BTD) + fuser.modality_2D[1]
        blocks: list[Any] = list(fuser.blocks)
        for number, (block, mode) in enumerate(zip(blocks, fuser.modes, strict=True)):
            image_BM2D = picture[:, :, number]
            prefix = image_BM2D if mode == "unified" else None
            mixed_BTD, own = attended(
                block.self_attention, block.self_norm(x_BTD), past[:, :, len(fresh)], mask_B1TS, prefix
            )
            x_BTD = x_BTD + mixed_BTD
            if mode != "unified":
                found_BTD = looked_up(block.cross_attention, block.cross_norm(x_BTD), image_BM2D)
                x_BTD = x_BTD + block.gate(found_BTD) * found_BTD
            x_BTD = x_BTD + block.mlp(block.mlp_norm(x_BTD))
            fresh.append(own)
        last_B11 = (counts - 1)[:, None, None].expand(-1, 1, x_BTD.shape[2])
        last_B1D = fuser.norm(x_BTD).gather(1, last_B11)
        return self.model.words(last_B1D)[:, 0], torch.stack(fresh, 2)


def step_mask(tokens_BT: Tensor, starts_B: Tensor, num_past: int) -> Tensor:
    """Return [B, 1, T, P + T]: a token sees the real ones of its past, and of the new ones those up to itself."""
    length = tokens_BT.shape[1]
    past_BP = torch.arange(num_past, device=tokens_BT.device) < starts_B[:, None]
    lower_TT = torch.ones(length, length, dtype=torch.bool, device=tokens_BT.device).tril()
    past_BTP = past_BP[:, None].expand(-1, length, -1)
    return torch.cat([past_BTP, lower_TT.expand(tokens_BT.shape[0], -1, -1)], 2)[:, None]


def attended(
    layer: SelfAttention, x_BTD: Tensor, past_BP2D: Tensor, mask_B1TS: Tensor, prefix_BM2D: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return what self-attention adds, and the new keys and values [B, T, 2, D]. A prefix is seen by all."""
    query_BTD, key_BTD, value_BTD = layer.query_key_value(x_BTD).chunk(3, -1)
    own_BT2D = torch.stack([key_BTD, value_BTD], 2)
    all_BS2D = torch.cat([past_BP2D, own_BT2D], 1)
    if prefix_BM2D is not None:
        all_BS2D = torch.cat([prefix_BM2D, all_BS2D], 1)
        seen = torch.ones_like(prefix_BM2D[:, :, 0, 0], dtype=torch.bool)[:, None, None]
        mask_B1TS = torch.cat([seen.expand(-1, -1, x_BTD.shape[1], -1), mask_B1TS], 3)
    added_BTD: Tensor = layer.out(mixed(query_BTD, all_BS2D, layer.num_heads, mask_B1TS))
    return added_BTD, own_BT2D


def looked_up(layer: Any, x_BTD: Tensor, picture_BM2D: Tensor) -> Tensor:
    """Return what cross-attention finds in a picture's keys and values."""
    found: Tensor = layer.out(mixed(layer.query(x_BTD), picture_BM2D, layer.num_heads, None))
    return found


def mixed(query_BTD: Tensor, kept_BS2D: Tensor, num_heads: int, mask: Tensor | None) -> Tensor:
    """Return attention written out, which every exporter keeps as two products and a softmax."""
    query_BHTK = split_heads(query_BTD, num_heads)
    key_BHSK, value_BHSK = (split_heads(kept_BS2D[:, :, number], num_heads) for number in (0, 1))
    score_BHTS = query_BHTK @ key_BHSK.transpose(2, 3) * query_BHTK.shape[-1] ** -0.5
    if mask is not None:
        score_BHTS = score_BHTS.masked_fill(~mask, float("-inf"))
    mixed_BHTK: Tensor = score_BHTS.softmax(-1) @ value_BHSK
    return mixed_BHTK.transpose(1, 2).flatten(2)


def square(count: int) -> tuple[int, int]:
    """Return the grid of so many tokens of a square picture."""
    edge = round(count**0.5)
    assert edge * edge == count, f"{count} tokens are no square grid"
    return edge, edge


class Match(nn.Module):
    """The matching head over a picture's tokens and a text."""

    def __init__(self, model: VisionLanguageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, features: Tensor, tokens: Tensor) -> Tensor:
        """Return the probability [B] that each pair belongs together: features [B, N, Dv], token ids [B, T]."""
        valid_BN = torch.ones_like(features[:, :, 0], dtype=torch.bool)
        fuser = self.model.fuser
        grid = square(features.shape[1]) if fuser.attend != "full" and "fusion" in fuser.modes else None
        image = Encoded(features, valid_BN, features[:, 0], grid)
        logits_B: Tensor = self.model.match(image, self.model.text.encode(tokens))
        return logits_B.sigmoid()


class EncodeImage(nn.Module):
    """The vision tower's tokens, which all heads start from."""

    def __init__(self, model: VisionLanguageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        """Return [B, N, Dv]."""
        tokens_BND: Tensor = self.model.vision.encode(pixels).tokens_BTD
        return tokens_BND


def geometry(config: ModelConfig) -> dict[str, int]:
    """Return what a server must know to keep keys and values for the decoder."""
    layers = config.text.num_layers + config.text.deepen + config.fusion.num_layers
    heads = {config.text.num_heads, config.fusion.num_heads}
    return {
        "layers": layers,
        "width": config.text.hidden_size,
        # Scales of a compressed cache are one a head; where the stacks have other heads, one a head of the narrower.
        "heads": max(heads),
        "maxLength": config.text.max_length,
        "padId": PAD_ID,
    }
