"""Prompts in front of a frozen model: what has a gradient, the Chinese template, and that learned vectors beat words."""

from __future__ import annotations

import hashlib

import pytest
import torch
from tokenizers import Tokenizer
from torch.nn import functional

from belvedere_platform.errors import InvalidInput
from belvedere_training.model.config import ConvConfig, FusionConfig, ModelConfig, TextConfig
from belvedere_training.model.tokenizer import learn
from belvedere_training.model.vision_language import VisionLanguageModel
from belvedere_training.prompting.learner import PromptLearner
from belvedere_training.prompting.templates import SENTIMENT, SENTIMENT_WORDS, HiddenWordClassifier, Verbaliser

CLASSES = ["red", "blue", "green"]
TEXTS = [*CLASSES, "a picture of red", "这是一条好消息。情感倾向可能是:好。", "这是一条坏消息。情感倾向可能是:坏。"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return learn(TEXTS, 600, 64, generative=True)


@pytest.fixture
def model(tokenizer: Tokenizer) -> VisionLanguageModel:
    torch.manual_seed(0)
    config = ModelConfig(
        topology="fusion",
        embed_dim=16,
        vision=ConvConfig(image_size=16, stem_width=8, widths=(8,), blocks=(1,), pooled_width=16),
        text=TextConfig(
            vocab_size=tokenizer.get_vocab_size(), hidden_size=16, num_layers=1, num_heads=2, max_length=64
        ),
        fusion=FusionConfig(num_layers=1, num_heads=2),
    )
    return VisionLanguageModel(config).eval()


def digest(model: VisionLanguageModel) -> str:
    return hashlib.sha256(b"".join(weight.numpy().tobytes() for weight in model.state_dict().values())).hexdigest()


def accuracy(learner: PromptLearner, pixels: torch.Tensor, labels: torch.Tensor, steps: int) -> float:
    weights = [weight for weight in learner.parameters() if weight.requires_grad]
    optimizer = torch.optim.Adam(weights, lr=0.05) if weights else None
    for _ in range(steps if optimizer else 0):
        assert optimizer is not None
        optimizer.zero_grad()
        functional.cross_entropy(learner(pixels), labels).backward()
        optimizer.step()
    return float((learner(pixels).argmax(1) == labels).float().mean())


def test_learned_vectors_are_at_least_as_good_as_words_and_nothing_else_moves(
    model: VisionLanguageModel, tokenizer: Tokenizer
) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(12) % 3
    colours = torch.randn(3, 3, 1, 1, generator=generator)
    pixels = colours[labels] + 0.1 * torch.randn(12, 3, 16, 16, generator=generator)
    before = digest(model)
    found = {}
    for kind in ("hard", "soft", "hybrid"):
        torch.manual_seed(0)
        learner = PromptLearner(model, tokenizer, CLASSES, kind=kind, per_class=True).train()  # type: ignore[arg-type]
        found[kind] = accuracy(learner, pixels, labels, 120)
        learning = [name for name, weight in learner.named_parameters() if weight.requires_grad]
        assert learning == ([] if kind == "hard" else ["vectors_CMD"])
    assert digest(model) == before
    assert found["soft"] > found["hard"]
    assert found["hybrid"] >= found["hard"]


def test_shared_vectors_stand_between_the_start_and_the_class(model: VisionLanguageModel, tokenizer: Tokenizer) -> None:
    learner = PromptLearner(model, tokenizer, CLASSES, num_vectors=2)
    assert learner.vectors_CMD is not None
    assert learner.vectors_CMD.shape == (1, 2, 16)
    with torch.no_grad():
        word = model.text.embedding.weight[tokenizer.encode("blue").ids[1]]
        learner.vectors_CMD[0] = word
    written = model.embed_text(torch.tensor([tokenizer.encode("blue").ids[:1] + tokenizer.encode("blue").ids[1:2] * 2]))
    assert learner.class_embeddings().shape == (3, 16)
    assert written.shape == (1, 16)


def test_the_chinese_template_runs_through_tokenizer_and_hidden_word_head(
    model: VisionLanguageModel, tokenizer: Tokenizer
) -> None:
    classifier = HiddenWordClassifier(model, tokenizer, SENTIMENT, Verbaliser.of(SENTIMENT_WORDS, tokenizer))
    assert classifier.verbaliser.classes == ("positive", "negative")
    tokens = classifier.tokens(["好消息", "坏消息" * 40])
    assert ((tokens == classifier.mask_id).sum(1) == 1).all(), (
        "a long text is shortened, the hidden word is not cut off"
    )
    logits = classifier(["好消息", "坏消息"])
    assert logits.shape == (2, 2)
    assert not any(weight.requires_grad for weight in classifier.parameters())


@pytest.mark.parametrize(
    ("template", "words", "message"),
    [
        ("没有{text}", SENTIMENT_WORDS, r"it must contain \[MASK\] exactly once"),
        (SENTIMENT, {"positive": "非常非常好", "negative": "坏"}, "verbaliser.positive is '非常非常好', which is"),
        (SENTIMENT, {"positive": "好", "negative": "好"}, "gives the same word to two classes"),
    ],
)
def test_a_wrong_template_or_word_is_named(
    model: VisionLanguageModel, tokenizer: Tokenizer, template: str, words: dict[str, str], message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        HiddenWordClassifier(model, tokenizer, template, Verbaliser.of(words, tokenizer))
