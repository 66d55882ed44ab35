"""The ordering of three losses at one budget, on drawn shapes."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
from torch import Tensor

from belvedere_platform.telemetry.benchmark import Row, result
from belvedere_training.data.corpus import Corpus, corpus_texts, load_split
from belvedere_training.data.loader import Loader
from belvedere_training.data.shapes import build_shapes
from belvedere_training.evaluation.retrieval import recall
from belvedere_training.model.config import sized
from belvedere_training.model.normalization import normalise
from belvedere_training.model.tokenizer import encode, learn
from belvedere_training.model.vision_language import VisionLanguageModel
from belvedere_training.objectives.contrastive import contrastive_loss
from belvedere_training.objectives.metric import alignment_loss, squared_error_loss
from belvedere_training.optimizer import Optimizers, schedule
from training_subject import Subject

# B pictures, E embedding

NAMES = (
    "loss_ordering_contrast_over_squared_error",
    "loss_ordering_alignment_over_squared_error",
)
SEEDS, BATCH = (0, 1), 40
LOSS_PAIRS = 2400
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "squared error": squared_error_loss,
    "contrast": lambda image_BE, text_BE: contrastive_loss(image_BE, text_BE, torch.tensor(1 / 0.07)),
    "alignment": lambda image_BE, text_BE: alignment_loss(image_BE, text_BE, one_way=True),
}


def rows(subject: Subject) -> list[Row]:
    """Train on three styles of shapes, and ask in a style that was not seen."""
    torch.set_num_threads(1)
    folder = build_shapes(subject.folder / "shapes")
    train, held_out = load_split(folder, "train"), load_split(folder, "heldout_style")
    return _loss_rows(train, held_out)


def _loss_rows(train: Corpus, held_out: Corpus) -> list[Row]:
    found = {loss: [_retrieval(loss, seed, train, held_out) for seed in SEEDS] for loss in LOSSES}
    mean = {loss: statistics.mean(values) for loss, values in found.items()}
    note = (
        f"text to picture R@1 of {len(held_out)} held-out drawings after {LOSS_PAIRS} pairs, {len(SEEDS)} seeds: "
        + ", ".join(f"{loss} {', '.join(f'{value:.3f}' for value in values)}" for loss, values in found.items())
    )
    floor = 1 / len(held_out)
    return [
        result(name, mean[loss] / max(mean["squared error"], floor), "x", "higher", 2.0, note=note)
        for name, loss in zip(NAMES, ("contrast", "alignment"), strict=False)
    ]


def _retrieval(loss: str, seed: int, train: Corpus, held_out: Corpus) -> float:
    """Return R@1 of the nano model after training with one loss on normalised embeddings."""
    shape = sized("nano")
    tokenizer = learn(corpus_texts(train), shape.text.vocab_size, shape.text.max_length)
    text = shape.text.model_copy(update={"vocab_size": tokenizer.get_vocab_size()})
    torch.manual_seed(seed)
    model = VisionLanguageModel(shape.model_copy(update={"text": text})).train()
    optimizer = Optimizers(model, learning_rate=1e-3, weight_decay=0.05)
    loader = Loader(train, tokenizer, seed=seed, batch_size=BATCH, rows=slice(0, BATCH), ahead=0)
    for position in range(0, LOSS_PAIRS, BATCH):
        batch = loader.batch(position)
        image_BE, text_BE, _ = model(batch.pixels_B3SS, batch.tokens_BT)
        optimizer.set_rate(schedule(position + BATCH, 400, LOSS_PAIRS))
        optimizer.zero_grad()
        LOSSES[loss](image_BE, text_BE).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    model.eval()
    with torch.inference_mode():
        image_NE = model.embed_image(normalise(held_out.pixels(range(len(held_out))), model.config.normalization))
        text_NE = model.embed_text(encode(tokenizer, held_out.captions("en")))
    return recall(text_NE @ image_NE.T)[1]
