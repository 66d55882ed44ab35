"""What is explained: the similarity of one picture and one text, as a function of pixels and word embeddings."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from belvedere_training.model.dual import DualStream
from belvedere_training.model.normalization import normalise, white
from belvedere_training.model.text import PAD_ID
from belvedere_training.model.tokenizer import encode

# B batch, S picture edge, T tokens, D width of the text tower


class Similarity(nn.Module):
    """Return the cosine of each picture and text; texts come as embedded tokens, because ids have no gradient."""

    def __init__(self, model: DualStream) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels_B3SS: Tensor, embedded_BTD: Tensor, valid_BT: Tensor) -> Tensor:
        """Return [B]."""
        text_BE = self.model.project_text(self.model.text.encode_embedded(embedded_BTD, valid_BT))
        return (self.model.embed_image(pixels_B3SS) * text_BE).sum(-1)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One picture with one text, as the score takes them, and the pair with nothing in it that both are compared with."""

    pixels_13SS: Tensor
    embedded_1TD: Tensor
    valid_1T: Tensor
    white_311: Tensor
    words: tuple[str, ...]
    start: int
    """How many tokens at the beginning belong to no word; they are the same in the empty text."""

    @property
    def baseline(self) -> tuple[Tensor, Tensor]:
        """Return a white picture, and a text whose words are padding."""
        empty_1TD = self.embedded_1TD.clone()
        empty_1TD[:, self.start :] = 0.0  # the padding's embedding
        return self.white_311.expand_as(self.pixels_13SS).clone(), empty_1TD


def pair_of(model: DualStream, tokenizer: Tokenizer, pixels_3SS: Tensor, text: str) -> Pair:
    """Return the pair of a uint8 picture and a text."""
    tokens_1T = encode(tokenizer, [text], trim=True)
    ids = [int(token) for token in tokens_1T[0]]
    with torch.no_grad():
        embedded_1TD = model.text.embedding(tokens_1T)
    return Pair(
        pixels_13SS=normalise(pixels_3SS[None], model.config.normalization),
        embedded_1TD=embedded_1TD,
        valid_1T=tokens_1T != PAD_ID,
        white_311=white(model.config.normalization),
        words=tuple(tokenizer.decode([token], skip_special_tokens=False).strip() for token in ids),
        start=1,
    )
