"""The objectives of one step in one forward pass, so that they share the towers and distributed training sees them all."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from belvedere_platform.errors import InvalidInput
from belvedere_platform.resources.training_run import Objectives
from belvedere_training.data.loader import Said
from belvedere_training.model.config import ModelConfig
from belvedere_training.model.disentangling import disentangling_loss
from belvedere_training.model.text import TextTower
from belvedere_training.model.tower import Encoded
from belvedere_training.model.vision_language import VisionLanguageModel
from belvedere_training.objectives.language import asked_places, asked_word_loss, hide_words
from belvedere_training.objectives.matching import hard_negatives, matching_loss
from belvedere_training.objectives.pixels import masked_image_loss

# B pairs of this worker, C texts that words are learned from, T tokens, E embedding, S picture edge

GROUPS: tuple[tuple[str, ...], ...] = (("itm", "lm"), ("mlm",), ("mim",))
"""What is drawn together for a step. Contrast is part of every step."""
EVERY_STEP = ("disentangle",)
"""What is part of every step where it is asked for: it costs next to nothing."""


class Outputs(NamedTuple):
    """Embeddings for the contrast, and the losses of the other objectives by name."""

    image_BE: Tensor
    text_BE: Tensor
    scale: Tensor
    losses: dict[str, Tensor]


def drawn(weights: Objectives, seed: int, position: int) -> tuple[str, ...]:
    """Return the objectives of the step at this position beside contrast: the same on every worker."""
    groups = [[name for name in group if getattr(weights, name)] for group in GROUPS]
    groups = [group for group in groups if group]
    if len(groups) > weights.groups_per_step:
        groups = random.Random(f"{seed}/{position}/objectives").sample(groups, weights.groups_per_step)
    always = [name for name in EVERY_STEP if getattr(weights, name)]
    return tuple(sorted([*(name for group in groups for name in group), *always]))


def any_asked(weights: Objectives) -> bool:
    """Return whether anything is learned beside contrast."""
    return any(getattr(weights, name) for group in (*GROUPS, EVERY_STEP) for name in group)


def needs_words(weights: Objectives) -> bool:
    """Return whether texts need an end and a mask in the vocabulary."""
    return bool(weights.lm or weights.mlm)


def check(weights: Objectives, model: ModelConfig) -> None:
    """Raise InvalidInput where an objective has no head in this model."""
    for name in ("itm", "lm", "mlm"):
        if getattr(weights, name) and model.topology == "dual":
            raise InvalidInput(
                f"objectives.{name} is {getattr(weights, name):g} and architecture.topology is dual: "
                "it needs modalities that meet, fusion, unified or hybrid"
            )
    if weights.mim and not model.pixels.num_layers:
        raise InvalidInput(f"objectives.mim is {weights.mim:g}: it needs architecture.tower vit")
    if weights.disentangle and not model.parts.attributes:
        raise InvalidInput(
            f"objectives.disentangle is {weights.disentangle:g}, and the model of initializeFrom.modelVersion has no parts "
            "for attributes: leave it out, or train from scratch"
        )


def with_objectives(
    weights: Objectives, model: VisionLanguageModel, mask_id: int | None, *, touches_all: bool
) -> nn.Module:
    """Return what is called in training: the model, or the model with what is learned beside contrast."""
    return MultiTask(model, mask_id, touches_all=touches_all) if any_asked(weights) else model


class MultiTask(nn.Module):
    """Wraps the model for training; its weights are the model's.

    touches_all: a weight that no term of a step used gets a gradient of zero, for workers that wait for all gradients.
    """

    def __init__(self, model: VisionLanguageModel, mask_id: int | None, *, touches_all: bool = True) -> None:
        super().__init__()
        self.model = model
        self.mask_id = mask_id
        self.touches_all = touches_all

    def forward(
        self,
        pixels_B3SS: Tensor,
        tokens_BT: Tensor,
        said: Said,
        same_BB: Tensor,
        terms: tuple[str, ...],
        generator: torch.Generator,
        attributes: Mapping[str, Tensor] | None = None,
        resolutions: Sequence[int] | None = None,
    ) -> Outputs:
        """Return embeddings and the losses of the terms.

        said: what words are learned from. same_BB: pairs that are no negatives of each other. attributes: the number of each
        picture's value. resolutions: what each picture is seen at, where that is not the whole; masked patches are of the whole.
        """
        model = self.model
        image, text = model.encode_image(pixels_B3SS, resolutions), model.text.encode(tokens_BT)
        image_BE, text_BE, scale = model.project_image(image), model.project_text(text), model.scale()
        said_CT = tokens_BT if said.tokens_CT is None else said.tokens_CT
        losses: dict[str, Tensor] = {}
        if "itm" in terms:
            negatives = hard_negatives(image_BE, text_BE, scale, same_BB, generator)
            losses["itm"] = matching_loss(model, image, text, negatives)[0]
        if "lm" in terms:
            made = text if said.tokens_CT is None and model.text.causal else None
            losses["lm"] = self._next_words(image, made, said_CT, said.asked_CT)
        if "mlm" in terms:
            losses["mlm"] = self._hidden_words(image, said_CT, generator)
        if "mim" in terms:
            losses["mim"] = masked_image_loss(model, pixels_B3SS, generator)
        if "disentangle" in terms:
            assert attributes is not None
            losses["disentangle"] = disentangling_loss(model.disentangler.losses(image_BE, attributes))
        if self.touches_all:
            losses["unused"] = 0.0 * torch.stack([p.sum() for p in model.parameters() if p.requires_grad]).sum()
        return Outputs(image_BE, text_BE, scale, losses)

    def _next_words(self, image: Encoded, made: Encoded | None, said_CT: Tensor, asked_CT: Tensor) -> Tensor:
        # A causal tower has made this pass for the contrast already (Yu et al. 2022, arXiv:2205.01917, section 3.2).
        text = encoded_once(self.model.text, said_CT) if made is None else made
        asked = asked_places(said_CT, asked_CT)
        fused = self.model.fuse_encoded(image, text, causal=True, wanted_BA=asked.place_BA)
        return asked_word_loss(self.model.words(fused.text_BTD), asked.target_BA, asked.real_BA)

    def _hidden_words(self, image: Encoded, said_CT: Tensor, generator: torch.Generator) -> Tensor:
        assert self.mask_id is not None
        hidden = hide_words(said_CT, self.mask_id, self.model.config.text.vocab_size, generator)
        text = self.model.text.encode(hidden.tokens_BT, causal=False)
        fused = self.model.fuse_encoded(image, text)
        return asked_word_loss(self.model.words(fused.text_BTD), said_CT, hidden.asked_BT)


def encoded_once(tower: TextTower, tokens_CT: Tensor) -> Encoded:
    """Return the causal encoding of the texts, of which those that are the same are encoded once: a set has few questions.

    Without the last token, after which nothing is said.
    """
    distinct_UT, place_C = torch.unique(tokens_CT[:, :-1], dim=0, return_inverse=True)
    encoded = tower.encode(distinct_UT, causal=True)
    return Encoded(encoded.tokens_BTD[place_C], encoded.valid_BT[place_C], encoded.pooled_BD[place_C], encoded.grid)
