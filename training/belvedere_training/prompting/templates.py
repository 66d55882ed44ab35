"""Prompts written by hand: a class between words, or a sentence whose hidden word answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from belvedere_platform.errors import InvalidInput
from belvedere_training.model.tokenizer import MASK, encode
from belvedere_training.model.vision_language import VisionLanguageModel

# B texts, T tokens, C classes, V vocabulary

MASK_WRITTEN = "[MASK]"
SENTIMENT = "这是一条{text}。情感倾向可能是:[MASK]。"
SENTIMENT_WORDS = {"positive": "好", "negative": "坏"}


@dataclass(frozen=True, kw_only=True)
class Verbaliser:
    """Which word of the vocabulary stands for which class. Schick and Schütze 2021 (arXiv:2001.07676), section 3.1."""

    classes: tuple[str, ...]
    token_ids: tuple[int, ...]

    @classmethod
    def of(cls, words: Mapping[str, str], tokenizer: Tokenizer) -> Verbaliser:
        """Return the verbaliser of {class: word}; a word must be one token, and no two classes may share it."""
        found = {name: tokenizer.encode(word, add_special_tokens=False).ids for name, word in words.items()}
        for name, ids in found.items():
            ids[:] = [one for one in ids if one]
            if len(ids) != 1:
                raise InvalidInput(
                    f"verbaliser.{name} is {words[name]!r}, which is {len(ids)} tokens; choose a word that is one token"
                )
        if len({ids[0] for ids in found.values()}) < len(found):
            raise InvalidInput(f"verbaliser gives the same word to two classes: {dict(words)}")
        return cls(classes=tuple(found), token_ids=tuple(ids[0] for ids in found.values()))


class HiddenWordClassifier(nn.Module):
    """Fills the hidden word of a template and reads the class from it; the model stays as it is."""

    def __init__(self, model: VisionLanguageModel, tokenizer: Tokenizer, template: str, verbaliser: Verbaliser) -> None:
        super().__init__()
        for part in ("{text}", MASK_WRITTEN):
            if template.count(part) != 1:
                raise InvalidInput(f"template is {template!r}; it must contain {part} exactly once")
        mask_id = tokenizer.token_to_id(MASK)
        if mask_id is None:
            raise InvalidInput("this model's vocabulary has no mask: train it with objectives.mlm")
        self.model, self.tokenizer, self.template = model.requires_grad_(False), tokenizer, template
        self.verbaliser, self.mask_id = verbaliser, mask_id

    def tokens(self, texts: list[str]) -> Tensor:
        """Return the token ids of the filled template; the text is shortened where the hidden word would be cut off."""
        limit = self.model.config.text.max_length
        return torch.cat([self._fitted(text, limit) for text in texts])

    def _fitted(self, text: str, limit: int) -> Tensor:
        for end in range(len(text), -1, -1):
            filled = self.template.format(text=text[:end]).replace(MASK_WRITTEN, MASK)
            tokens_1T = encode(self.tokenizer, [filled])[:, :limit]
            if bool((tokens_1T == self.mask_id).any()):
                return tokens_1T
        raise InvalidInput(f"template has more tokens than the {limit} that the model reads: {self.template!r}")

    def forward(self, texts: list[str], pixels_B3SS: Tensor | None = None) -> Tensor:
        """Return logits [B, C] for the texts, beside pictures or beside an empty one."""
        tokens_BT = self.tokens(texts)
        if pixels_B3SS is None:
            size = self.model.config.vision.image_size
            pixels_B3SS = torch.zeros(len(texts), 3, size, size)
        logits_BTV = self.model.words(self.model.fuse(pixels_B3SS, tokens_BT).text_BTD)
        place_B = (tokens_BT == self.mask_id).int().argmax(1)
        at_mask_BV = logits_BTV[torch.arange(len(texts)), place_B]
        return at_mask_BV[:, list(self.verbaliser.token_ids)]
