"""Distillation: a small model learns from the pairs, and from how a larger one finds them alike."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from belvedere_training.compression.tune import Loss, contrast
from belvedere_training.data.loader import Batch
from belvedere_training.model.config import ModelConfig
from belvedere_training.model.dual import DualStream
from belvedere_training.model.vision_language import VisionLanguageModel

# B pairs, E embedding

RELATION_WEIGHT = 1.0


def student_of(config: ModelConfig, tokenizer: Tokenizer, seed: int) -> VisionLanguageModel:
    """Return a new model of the configuration that reads the teacher's tokens."""
    torch.manual_seed(seed)
    text = config.text.model_copy(update={"vocab_size": tokenizer.get_vocab_size()})
    return VisionLanguageModel(config.model_copy(update={"text": text}))


def relation_loss(
    image_BE: Tensor,
    text_BE: Tensor,
    scale: Tensor,
    teacher_image_BE: Tensor,
    teacher_text_BE: Tensor,
    teacher_scale: Tensor,
) -> Tensor:
    """Return how far the student's distributions over the batch are from the teacher's, both ways.

    Yang et al. 2023 (arXiv:2307.12732), section 3.3: widths of the two spaces may differ, only similarities are compared.
    """
    own_BB, other_BB = scale * image_BE @ text_BE.T, teacher_scale * teacher_image_BE @ teacher_text_BE.T
    return (_divergence(own_BB, other_BB) + _divergence(own_BB.T, other_BB.T)) / 2


def _divergence(own_BB: Tensor, other_BB: Tensor) -> Tensor:
    return functional.kl_div(
        functional.log_softmax(own_BB, -1), functional.log_softmax(other_BB, -1), reduction="batchmean", log_target=True
    )


def distillation(teacher: DualStream) -> Loss:
    """Return the loss that `tune` takes: contrast, and the teacher's relations on the same views."""
    teacher = teacher.eval()

    def loss(image_BE: Tensor, text_BE: Tensor, scale: Tensor, batch: Batch) -> Tensor:
        with torch.no_grad():
            found = teacher(batch.pixels_B3SS, batch.tokens_BT)
        return contrast(image_BE, text_BE, scale, batch) + RELATION_WEIGHT * relation_loss(
            image_BE, text_BE, scale, *found
        )

    return loss
