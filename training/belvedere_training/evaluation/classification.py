"""Zero-shot classification: the class whose prompts are nearest; one prompt against an ensemble of several."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from belvedere_training.data.corpus import Corpus
from belvedere_training.evaluation.embeddings import Embedded, embed_texts
from belvedere_training.model.dual import DualStream

# N pictures, C classes, P prompts of a class, E embedding

PROMPTS: Mapping[str, Sequence[str]] = {
    "en": ("{}", "a picture of {}", "an icon of {}", "a drawing of {}", "{} symbol"),
    "zh": ("{}", "{}的图片", "{}图标", "一幅{}的画", "{}符号"),
}
_LEAST_CLASSES = 2


def class_embeddings(model: DualStream, tokenizer: Tokenizer, names: Sequence[str], prompts: Sequence[str]) -> Tensor:
    """Return a unit vector for each class: the direction of the mean over its prompts. Radford et al. 2021, section 3.1.4."""
    texts = [prompt.format(name) for name in names for prompt in prompts]
    text_CPE = embed_texts(model, tokenizer, texts).reshape(len(names), len(prompts), -1)
    return functional.normalize(text_CPE.mean(1), dim=-1)


def accuracy(
    image_NE: Tensor, class_CE: Tensor, label_N: Sequence[int], cutoffs: Sequence[int] = (1, 5)
) -> list[float]:
    """Return, for each cutoff, the share of pictures whose class is among the nearest. Ties count as found."""
    similarity_NC = image_NE @ class_CE.T
    own_N1 = similarity_NC.gather(1, torch.tensor(label_N)[:, None])
    rank_N = (similarity_NC > own_N1).sum(1)
    return [round((rank_N < cutoff).float().mean().item(), 4) for cutoff in cutoffs]


def classification_metrics(split: str, embedded: Embedded, model: DualStream, tokenizer: Tokenizer) -> dict[str, float]:
    """Return top-1 and top-5 over the captions as classes by language, and over the groups where there are several."""
    metrics: dict[str, float] = {}
    for language in embedded.text_NE:
        names = embedded.corpus.captions(language)
        metrics |= _metrics(f"{split}_{language}_zeroshot", names, language, embedded, model, tokenizer)
    groups = group_names(embedded.corpus)
    return metrics | _metrics(f"{split}_group_zeroshot", groups, "en", embedded, model, tokenizer)


def group_names(corpus: Corpus) -> list[str]:
    """Return the group of every picture, as words."""
    return [str(record.get("group", "")).replace("-", " ") for record in corpus.records]


def _metrics(
    name: str,
    labels: Sequence[str],
    language: str,
    embedded: Embedded,
    model: DualStream,
    tokenizer: Tokenizer,
) -> dict[str, float]:
    classes = sorted(set(labels))
    if len(classes) < _LEAST_CLASSES:
        return {}
    numbers = {label: number for number, label in enumerate(classes)}
    label_N = [numbers[label] for label in labels]
    prompts = PROMPTS.get(language, PROMPTS["en"][:1])
    one = accuracy(embedded.image_NE, class_embeddings(model, tokenizer, classes, prompts[:1]), label_N)
    several = accuracy(embedded.image_NE, class_embeddings(model, tokenizer, classes, prompts), label_N)
    most_common = Counter(labels).most_common(1)[0][1] / len(labels)
    return {
        f"{name}_top1": several[0],
        f"{name}_top5": several[1],
        f"{name}_one_prompt_top1": one[0],
        f"{name}_majority": round(most_common, 4),
    }
