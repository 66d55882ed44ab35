"""Classes as texts: in a template (hard), behind learned vectors (soft), or both (hybrid). The model itself is frozen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from belvedere_platform.errors import InvalidInput
from belvedere_training.model.dual import DualStream
from belvedere_training.model.tokenizer import encode

# B pictures, C classes, M learned vectors, T tokens, D width, E embedding, S picture edge

Kind = Literal["hard", "soft", "hybrid"]
TEMPLATES = {"en": "a picture of {}", "zh": "一张{}的图片"}


class PromptLearner(nn.Module):
    """Scores pictures against classes by their texts. Zhou et al. 2022 (arXiv:2109.01134), section 3.2.

    per_class: every class has vectors of its own instead of shared ones. Only the vectors ever have a gradient.
    """

    tokens_CT: Tensor

    def __init__(
        self,
        model: DualStream,
        tokenizer: Tokenizer,
        classes: Sequence[str],
        *,
        kind: Kind = "soft",
        template: str = TEMPLATES["en"],
        num_vectors: int = 4,
        per_class: bool = False,
    ) -> None:
        super().__init__()
        if "{}" not in template:
            raise InvalidInput(f"template is {template!r}; it must contain {{}} where the class goes")
        self.model = model.requires_grad_(False).eval()
        self.kind = kind
        names = list(classes) if kind == "soft" else [template.format(name) for name in classes]
        self.register_buffer("tokens_CT", encode(tokenizer, names, trim=True), persistent=False)
        count = len(classes) if per_class else 1
        width = model.config.text.hidden_size
        if kind == "hard":
            self.vectors_CMD = None
        else:
            # As spread as the embeddings that they stand among.
            std = float(model.text.embedding.weight.std())
            self.vectors_CMD = nn.Parameter(torch.randn(count, num_vectors, width) * std)

    def train(self, mode: bool = True) -> PromptLearner:
        """Set the mode; the frozen model stays in evaluation."""
        super().train(mode)
        self.model.eval()
        return self

    def class_embeddings(self) -> Tensor:
        """Return a unit vector [C, E] for each class."""
        if self.vectors_CMD is None:
            return self.model.embed_text(self.tokens_CT)
        tower = self.model.text
        embedded_CTD = tower.embedding(self.tokens_CT)
        count = len(self.tokens_CT)
        vectors_CMD = self.vectors_CMD.expand(count, -1, -1)
        # The start of the text comes first, then the vectors, then the words.
        mixed_CTD = torch.cat([embedded_CTD[:, :1], vectors_CMD, embedded_CTD[:, 1:]], 1)
        word_CT = self.tokens_CT != 0
        valid_CT = torch.cat([word_CT[:, :1], word_CT.new_ones(vectors_CMD.shape[:2]), word_CT[:, 1:]], 1)
        limit = self.model.config.text.max_length
        return self.model.project_text(tower.encode_embedded(mixed_CTD[:, :limit], valid_CT[:, :limit]))

    def forward(self, pixels_B3SS: Tensor) -> Tensor:
        """Return logits [B, C]."""
        with torch.no_grad():
            image_BE = self.model.embed_image(pixels_B3SS)
        return self.model.scale() * image_BE @ self.class_embeddings().T
