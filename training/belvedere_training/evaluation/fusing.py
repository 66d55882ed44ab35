"""What only a model with fusion can do: match pairs with its head, write captions, answer questions in its own words."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from belvedere_training.data.corpus import Corpus
from belvedere_training.evaluation.embeddings import Embedded
from belvedere_training.evaluation.matching import auc, wrong_partners
from belvedere_training.evaluation.questions import Question, questions_of, share_right
from belvedere_training.model.normalization import normalise
from belvedere_training.model.text import PAD_ID
from belvedere_training.model.tokenizer import encode
from belvedere_training.model.vision_language import VisionLanguageModel

# N pairs, B batch, T tokens, V vocabulary

_CHUNK = 128
END = "<end>"


def fuses(model: VisionLanguageModel) -> bool:
    """Return whether the modalities meet in this model, so that its heads for pairs and words mean something."""
    return bool(model.config.fusion.num_layers) and model.config.topology != "dual"


def fusing_metrics(
    split: str, embedded: Embedded, model: VisionLanguageModel, tokenizer: Tokenizer
) -> dict[str, float]:
    """Return what the heads reach, by language; nothing for a model whose modalities never meet."""
    metrics: dict[str, float] = {}
    if not fuses(model):
        return metrics
    for language in embedded.text_NE:
        metrics[f"{split}_{language}_itm_auc"] = match_auc(embedded.corpus, language, model, tokenizer)
        perplexity, exact = caption_scores(embedded.corpus, language, model, tokenizer)
        metrics[f"{split}_{language}_caption_perplexity"] = perplexity
        metrics[f"{split}_{language}_caption_exact"] = exact
    questions = questions_of(embedded.corpus)
    if questions:
        given = answers_in_words(embedded.corpus, model, tokenizer, questions)
        metrics[f"{split}_vqa_words_accuracy"] = share_right(questions, given)
    return metrics


def match_auc(corpus: Corpus, language: str, model: VisionLanguageModel, tokenizer: Tokenizer) -> float:
    """Return the AUC of the matching head over each picture with its caption and with a wrong one."""
    captions = corpus.captions(language)
    partner = wrong_partners(list(corpus.records), language)
    right, wrong = [], []
    for start in range(0, len(corpus), _CHUNK):
        rows = range(start, min(start + _CHUNK, len(corpus)))
        kept = [row for row in rows if partner[row] >= 0]
        right.append(match_logits(corpus, rows, [captions[row] for row in rows], model, tokenizer))
        if kept:
            wrong.append(match_logits(corpus, kept, [captions[partner[row]] for row in kept], model, tokenizer))
    return round(auc(torch.cat(right), torch.cat(wrong)), 4) if wrong else float("nan")


@torch.inference_mode()
def match_logits(
    corpus: Corpus, rows: Sequence[int], texts: Sequence[str], model: VisionLanguageModel, tokenizer: Tokenizer
) -> Tensor:
    """Return the matching head's logit for each picture with its text."""
    tokens_BT = encode(tokenizer, texts, trim=True)
    image = model.vision.encode(normalise(corpus.pixels(rows), model.config.normalization))
    return model.match(image, model.text.encode(tokens_BT))


def caption_scores(
    corpus: Corpus, language: str, model: VisionLanguageModel, tokenizer: Tokenizer
) -> tuple[float, float]:
    """Return the perplexity of the true captions, and the share of them that greedy decoding writes word for word."""
    captions = corpus.captions(language)
    negative, num_tokens, exact = 0.0, 0, 0
    for start in range(0, len(corpus), _CHUNK):
        rows = range(start, min(start + _CHUNK, len(corpus)))
        pixels_B3SS = normalise(corpus.pixels(rows), model.config.normalization)
        tokens_BT = targets(tokenizer, captions[start : rows.stop])
        loss, count = _negative_log_likelihood(model, pixels_B3SS, tokens_BT)
        negative, num_tokens = negative + loss, num_tokens + count
        written_BT = decode_greedily(model, pixels_B3SS, tokens_BT[:, :1], tokens_BT.shape[1])
        # What follows the end of the true caption is no part of the answer.
        same_BT = (written_BT == tokens_BT) | (tokens_BT == PAD_ID)
        exact += int(same_BT.all(1).sum())
    return round(math.exp(min(negative / max(num_tokens, 1), 50.0)), 3), round(exact / len(corpus), 4)


def targets(tokenizer: Tokenizer, texts: Sequence[str]) -> Tensor:
    """Return the token ids of texts, each with the end token behind it where the tokenizer has one."""
    tokens_BT = encode(tokenizer, texts, trim=True)
    end = tokenizer.token_to_id(END)
    if end is None or bool((tokens_BT == end).any()):
        return tokens_BT
    tokens_BT = functional.pad(tokens_BT, (0, 1), value=PAD_ID)[:, : encode(tokenizer, [""]).shape[1]]
    length_B = (tokens_BT != PAD_ID).sum(1).clamp(max=tokens_BT.shape[1] - 1)
    tokens_BT[torch.arange(len(tokens_BT)), length_B] = end
    return tokens_BT


@torch.inference_mode()
def next_words(model: VisionLanguageModel, pixels_B3SS: Tensor, tokens_BT: Tensor) -> Tensor:
    """Return logits [B, T, V] of the word after each token, seeing the picture and the text up to that token."""
    return model.words(model.fuse(pixels_B3SS, tokens_BT, causal=True).text_BTD).float()


def _negative_log_likelihood(model: VisionLanguageModel, pixels_B3SS: Tensor, tokens_BT: Tensor) -> tuple[float, int]:
    logits_BTV = next_words(model, pixels_B3SS, tokens_BT)[:, :-1]
    loss = functional.cross_entropy(
        logits_BTV.flatten(0, 1), tokens_BT[:, 1:].flatten(), ignore_index=PAD_ID, reduction="sum"
    )
    return loss.item(), int((tokens_BT[:, 1:] != PAD_ID).sum())


def decode_greedily(model: VisionLanguageModel, pixels_B3SS: Tensor, start_BT: Tensor, length: int) -> Tensor:
    """Return the start with the likeliest word after word, up to the length."""
    tokens_BT = start_BT
    while tokens_BT.shape[1] < length:
        logits_BV = next_words(model, pixels_B3SS, tokens_BT)[:, -1].clone()
        logits_BV[:, PAD_ID] = float("-inf")  # padding is not a word, and would hide the place from attention
        tokens_BT = torch.cat([tokens_BT, logits_BV.argmax(-1, keepdim=True)], 1)
    return tokens_BT


def answers_in_words(
    corpus: Corpus, model: VisionLanguageModel, tokenizer: Tokenizer, questions: Sequence[Question]
) -> list[str]:
    """Return the likeliest first word after each question, among the answers that occur."""
    answers = sorted(Counter(question.answer for question in questions))
    # An answer is written after a blank, as `statement` does; its first token tells the answers apart.
    first_A = torch.tensor([tokenizer.encode(f"x {answer}").ids[2] for answer in answers])
    found = []
    for start in range(0, len(questions), _CHUNK):
        part = questions[start : start + _CHUNK]
        tokens_BT = encode(tokenizer, [question.text for question in part], trim=True, to_continue=True)
        pixels_B3SS = normalise(corpus.pixels([question.position for question in part]), model.config.normalization)
        last_B = (tokens_BT != PAD_ID).sum(1) - 1
        logits_BV = next_words(model, pixels_B3SS, tokens_BT)[torch.arange(len(part)), last_B]
        found += [answers[number] for number in logits_BV[:, first_A].argmax(1).tolist()]
    return found
