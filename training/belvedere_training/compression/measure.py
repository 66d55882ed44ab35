"""Size, latency and recall of a model and of what was made of it, side by side."""

from __future__ import annotations

import statistics
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from tokenizers import Tokenizer

from belvedere_training.data.corpus import Corpus
from belvedere_training.evaluation.embeddings import embed
from belvedere_training.evaluation.retrieval import retrieval_metrics
from belvedere_training.model.dual import DualStream

Clock = Callable[[], float]
_ROUNDS = 7
_BATCH = 16


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a model costs and what it can do. Latencies are of one thread's processor time, for a batch of 16."""

    name: str
    bytes: int
    packed_bytes: int
    image_ms: float
    text_ms: float
    recall: Mapping[str, float]

    def document(self) -> dict[str, Any]:
        """Return the measures as JSON holds them."""
        return asdict(self)


def compare(
    models: Mapping[str, DualStream], tokenizer: Tokenizer, corpus: Corpus, clock: Clock = time.process_time
) -> list[Measured]:
    """Measure all models in alternating rounds, so that what happens on the machine happens to each."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        times = _times(models, corpus, clock)
    finally:
        torch.set_num_threads(before)
    return [
        Measured(
            name=name,
            bytes=size_of(model)[0],
            packed_bytes=size_of(model)[1],
            image_ms=round(1000 * statistics.median(times[name, "image"]), 3),
            text_ms=round(1000 * statistics.median(times[name, "text"]), 3),
            recall=short_metrics(corpus, model, tokenizer),
        )
        for name, model in models.items()
    ]


def short_metrics(corpus: Corpus, model: DualStream, tokenizer: Tokenizer) -> dict[str, float]:
    """Return text-to-image recall by language."""
    metrics = retrieval_metrics(corpus.name, embed(model.eval(), tokenizer, corpus))
    return {name: value for name, value in metrics.items() if "_t2i_" not in name and "_i2t_" not in name}


@torch.inference_mode()
def _times(models: Mapping[str, DualStream], corpus: Corpus, clock: Clock) -> dict[tuple[str, str], list[float]]:
    times: dict[tuple[str, str], list[float]] = {}
    pixels_B3SS = torch.rand(_BATCH, 3, corpus.size, corpus.size)
    for number in range(_ROUNDS + 1):
        for name, model in models.items():
            tokens_BT = torch.ones(_BATCH, model.config.text.max_length, dtype=torch.long)
            calls = {"image": (model.embed_image, pixels_B3SS), "text": (model.embed_text, tokens_BT)}
            for kind, (call, given) in calls.items():
                start = clock()
                call(given)
                if number:  # the first one prepares kernels
                    times.setdefault((name, kind), []).append(clock() - start)
    return times


def size_of(model: DualStream) -> tuple[int, int]:
    """Return the bytes of all weights, and what is left of them when packed: pruned weights are worth nothing else."""
    total, packed = 0, 0
    for tensor in model.state_dict().values():
        total += tensor.numel() * tensor.element_size()
        packed += len(
            zlib.compress(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes(), 6)
        )
    return total, packed
