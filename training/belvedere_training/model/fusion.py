"""The blocks above the towers: one stack whose attention decides how far the modalities see each other."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from belvedere_training.model.attention import CrossAttention, Mask, SelfAttention, at, checkpointed, mlp
from belvedere_training.model.blocked import quartered
from belvedere_training.model.config import Attend, ModelConfig, Topology
from belvedere_training.model.tower import Encoded

# B batch, N image tokens, T text tokens, A of them that are wanted, S all tokens, D width


class Fused(NamedTuple):
    """Both modalities after fusion. joint_BD: the start token of the text, which has seen what the topology lets it."""

    image_BND: Tensor
    text_BTD: Tensor
    joint_BD: Tensor


class Gate(nn.Module):
    """How much of each channel passes: sigmoid(W x + b), as the input itself decides."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Return shares between nothing and one, a channel each."""
        return torch.sigmoid(self.linear(x_BTD))


class FusionBlock(nn.Module):
    """Self-attention, gated cross-attention, MLP; all pre-norm and residual.

    The gate is Alayrac et al. 2022 (arXiv:2204.14198), section 3.1.2, by channel and by input instead of one number.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.self_norm = nn.LayerNorm(width)
        self.self_attention = SelfAttention(width, num_heads)
        self.cross_norm = nn.LayerNorm(width)
        self.cross_attention = CrossAttention(width, num_heads)
        self.gate = Gate(width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = mlp(width)

    def forward(
        self,
        x_BTD: Tensor,
        mask: Mask,
        context_BSD: Tensor | None = None,
        context_mask: Mask = None,
        wanted_BA: Tensor | None = None,
    ) -> Tensor:
        """Return the tokens, or those at the places wanted; without a context there is no cross-attention."""
        mixed_BTD = self.self_attention(self.self_norm(x_BTD), mask, wanted_BA)
        x_BTD = mixed_BTD + (x_BTD if wanted_BA is None else at(x_BTD, wanted_BA))
        if context_BSD is not None:
            # Texts of one picture lie together and look at it as one long row: its keys are made once.
            query_BTD = self.cross_norm(x_BTD).reshape(context_BSD.shape[0], -1, x_BTD.shape[2])
            found_BTD = self.cross_attention(query_BTD, context_BSD, context_mask).reshape(x_BTD.shape)
            x_BTD = x_BTD + self.gate(found_BTD) * found_BTD
        out: Tensor = x_BTD + self.mlp(self.mlp_norm(x_BTD))
        return out


class Fuser(nn.Module):
    """The stack. dual: streams apart; fusion: cross-attention both ways with shared weights; unified: one sequence.

    hybrid crosses in its first half and concatenates in the second. The weights are the same in all of them.
    """

    def __init__(self, config: ModelConfig, vision_width: int) -> None:
        super().__init__()
        width = config.text.hidden_size
        self.attend: Attend = config.fusion.attend
        self.modes = modes(config.topology, config.fusion.num_layers)
        self.recompute = False
        self.bridge = nn.Linear(vision_width, width)
        self.modality_2D = nn.Parameter(torch.randn(2, width) * 0.02)
        self.blocks = nn.ModuleList(FusionBlock(width, config.fusion.num_heads) for _ in self.modes)
        self.norm = nn.LayerNorm(width)  # one for both modalities

    def forward(self, image: Encoded, text: Encoded, *, causal: bool = False, wanted_BA: Tensor | None = None) -> Fused:
        """Return both streams. causal: text sees all of the picture but no later text, and the picture sees no text.

        A picture may have several texts, as many as every other; they lie together and do not see each other.
        wanted_BA: the places of each text that are asked for, all if None; the last block computes no others.
        """
        each = text.tokens_BTD.shape[0] // image.tokens_BTD.shape[0]
        if each > 1 and not (causal and self.attend != "top" and set(self.modes) <= {"dual", "fusion"}):
            image = repeated(image, each)
        image_BND = self.bridge(image.tokens_BTD) + self.modality_2D[0]
        text_BTD = text.tokens_BTD + self.modality_2D[1]
        recompute = self.recompute and self.training
        for number, (block, mode) in enumerate(zip(self.blocks, self.modes, strict=True), start=1):
            step = self._together if mode == "unified" else self._apart
            wanted = wanted_BA if number == len(self.blocks) else None
            arguments = (block, mode, image_BND, text_BTD, image, text, causal, wanted)
            image_BND, text_BTD = checkpointed(step, *arguments) if recompute else step(*arguments)
        image_BND, text_BTD = self.norm(image_BND), self.norm(text_BTD)
        return Fused(image_BND, text_BTD, text_BTD[:, 0])

    def _apart(
        self,
        block: nn.Module,
        mode: Topology,
        image_BND: Tensor,
        text_BTD: Tensor,
        image: Encoded,
        text: Encoded,
        causal: bool,
        wanted_BA: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Return both streams after a block that looks across, or not at all."""
        image_mask, text_mask = _keys(image.valid_BT), _keys(text.valid_BT)
        own_mask = text_mask & _lower(text_BTD) if causal else text_mask
        if mode == "dual":
            return block(image_BND, image_mask), block(text_BTD, own_mask, wanted_BA=wanted_BA)
        keys_BND = quartered(image_BND, image.grid, self.attend, text_BTD)
        keys_mask = image_mask if self.attend == "full" else None
        text_out_BTD = block(text_BTD, own_mask, keys_BND, keys_mask, wanted_BA)
        # A picture that had seen the text would show each token what comes after it.
        if causal:
            return block(image_BND, image_mask), text_out_BTD
        return block(image_BND, image_mask, text_BTD, text_mask), text_out_BTD

    def _together(
        self,
        block: nn.Module,
        mode: Topology,
        image_BND: Tensor,
        text_BTD: Tensor,
        image: Encoded,
        text: Encoded,
        causal: bool,
        wanted_BA: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Return both streams after a block over their concatenation."""
        num_image = image_BND.shape[1]
        valid_BS = torch.cat([image.valid_BT, text.valid_BT], 1)
        mask = _keys(valid_BS)
        if causal:
            mask = mask & prefix_mask(num_image, text_BTD.shape[1], text_BTD.device)
        x_BSD = block(torch.cat([image_BND, text_BTD], 1), mask)
        text_BTD = x_BSD[:, num_image:]
        return x_BSD[:, :num_image], text_BTD if wanted_BA is None else at(text_BTD, wanted_BA)


def repeated(image: Encoded, each: int) -> Encoded:
    """Return each picture so many times, for blocks in which it sees a text or its keys are chosen by one."""
    tokens_BND, valid_BN, pooled_BD, grid = image
    return Encoded(
        tokens_BND.repeat_interleave(each, 0),
        valid_BN.repeat_interleave(each, 0),
        pooled_BD.repeat_interleave(each, 0),
        grid,
    )


def modes(topology: Topology, num_layers: int) -> tuple[Topology, ...]:
    """Return what each block does."""
    if topology != "hybrid":
        return (topology,) * num_layers
    crossing = num_layers // 2
    first: Topology = "fusion"
    second: Topology = "unified"
    return (first,) * crossing + (second,) * (num_layers - crossing)


def prefix_mask(num_image: int, num_text: int, device: torch.device | None = None) -> Tensor:
    """Return [S, S]: all see the picture, text also the text up to itself. Raffel et al. 2020 (arXiv:1910.10683), section 3.2.1."""
    length = num_image + num_text
    query_S1, key_1S = torch.arange(length, device=device)[:, None], torch.arange(length, device=device)[None]
    return (key_1S < num_image) | ((query_S1 >= num_image) & (key_1S <= query_S1))


def _keys(valid_BT: Tensor) -> Tensor:
    """Return [B, 1, 1, T]; the first place is always attended to, so that no row is empty."""
    first_T = torch.arange(valid_BT.shape[1], device=valid_BT.device) == 0
    return (valid_BT | first_T)[:, None, None, :]


def _lower(x_BTD: Tensor) -> Tensor:
    length = x_BTD.shape[1]
    return torch.ones(length, length, dtype=torch.bool, device=x_BTD.device).tril()
