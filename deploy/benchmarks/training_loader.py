"""Is data ready before the step needs it: pictures a second of the loader beside those of a training step."""

from __future__ import annotations

import statistics
import time

import torch

from belvedere_platform.telemetry.benchmark import Row, result
from belvedere_training.compression.tune import contrast
from belvedere_training.data.corpus import load_split
from belvedere_training.data.loader import Loader
from training_subject import Subject

NAMES = ("loader_images_per_second_vs_step",)
BATCH, ROUNDS = 128, 7


def rows(subject: Subject) -> list[Row]:
    """Time both on one thread's processor time, in alternating rounds; nothing is kept decoded, which is the hard case."""
    torch.set_num_threads(1)
    corpus = load_split(subject.data, "train", kept_bytes=0)
    loader = Loader(corpus, subject.model.tokenizer, seed=0, batch_size=BATCH, rows=slice(0, BATCH), ahead=0)
    model = subject.model.model.train()
    loads, steps = [], []
    for number in range(ROUNDS + 1):
        start = time.process_time()
        batch = loader.batch(number * BATCH)
        loaded = time.process_time()
        image_BE, text_BE, scale = model(batch.pixels_B3SS, batch.tokens_BT)
        loss = contrast(image_BE, text_BE, scale, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        done = time.process_time()
        if number:  # the first one prepares kernels
            loads.append(BATCH / (loaded - start))
            steps.append(BATCH / (done - loaded))
    model.eval().zero_grad()
    ratios = [load / step for load, step in zip(loads, steps, strict=True)]
    return [
        result(
            "loader_images_per_second_vs_step",
            statistics.median(ratios),
            "x",
            "higher",
            1.0,
            own_value=statistics.median(loads),
            peer="forward and backward of the nano model, fp32",
            peer_value=statistics.median(steps),
            rounds=ROUNDS,
            spread=[min(ratios), max(ratios)],
            note="decoding, views of both modalities and tokens on one thread",
        )
    ]
