"""The tokenizer: byte-level BPE, learned on training captions and tags alone; Chinese characters stay single."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor

from belvedere_training.data.texts import BETWEEN_QUESTIONS, MARK
from belvedere_training.model.text import PAD_ID

SPECIAL = ("<pad>", "<start>")
END, MASK = "<end>", "<mask>"
# Han characters, one by one: the corpus is too small to learn which of them form words.
_HAN = Regex(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")


def learn(texts: Iterable[str], vocab_size: int, context_length: int, *, generative: bool = False) -> Tokenizer:
    """Return a tokenizer of at most vocab_size entries, that pads and cuts to the context length.

    generative: texts end with a token of their own, and words can be hidden behind another; both come on top.
    Byte-level BPE: Radford et al. 2019, section 2.2; nothing is out of its vocabulary and decoding gives the text back.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase(), normalizers.Strip()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_HAN, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    special = [("<start>", 1)]
    if generative:
        special.append((END, tokenizer.get_vocab_size()))
        tokenizer.add_special_tokens([END, MASK])
    single = f"<start> $A {END}" if generative else "<start> $A"
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)
    tokenizer.enable_truncation(context_length)
    tokenizer.enable_padding(pad_id=PAD_ID, pad_token=SPECIAL[0], length=context_length)
    return tokenizer


def load(path: Path) -> Tokenizer:
    """Return the tokenizer that was saved as tokenizer.json."""
    return Tokenizer.from_file(str(path))


def encode(tokenizer: Tokenizer, texts: Sequence[str], *, trim: bool = False, to_continue: bool = False) -> Tensor:
    """Return token ids [n, context length].

    trim: as long as the longest text only (the padding has no effect). to_continue: without the end of the text.
    """
    tokens_BT = torch.tensor([encoding.ids for encoding in tokenizer.encode_batch(list(texts))], dtype=torch.long)
    end = tokenizer.token_to_id(END)
    if to_continue and end is not None:
        tokens_BT = tokens_BT.masked_fill(tokens_BT == end, PAD_ID)
    return tokens_BT[:, : int((tokens_BT != PAD_ID).sum(1).max())] if trim else tokens_BT


def mark_ids(tokenizer: Tokenizer) -> tuple[int, int]:
    """Return the tokens that end a question and an answer: bytes, which every vocabulary has."""
    mark = tokenizer.encode(f"{MARK}x", add_special_tokens=False).ids[0]
    between = tokenizer.encode(f"x{BETWEEN_QUESTIONS}x", add_special_tokens=False).ids[1]
    return mark, between


def answers_of(tokens_BT: Tensor, mark: int, between: int) -> Tensor:
    """Return [B, T] true for tokens after the end of a question and before the end of its answer."""
    place_T = torch.arange(tokens_BT.shape[1])
    asked_BT, answered_BT = (torch.where(tokens_BT == token, place_T, -1).cummax(1).values for token in (mark, between))
    return (asked_BT > answered_BT) & (tokens_BT != mark)
