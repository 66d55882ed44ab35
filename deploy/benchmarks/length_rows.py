"""What it saves to run texts in their own length: captions of the emoji set through the server's own models, grouped or all padded."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from belvedere_platform.artifacts import ArtifactStore
from belvedere_platform.protocol import EMBED_TEXT, InferRequest, Tensor
from belvedere_platform.resources.engine import EngineTarget
from belvedere_platform.telemetry.benchmark import Row, result
from belvedere_serving.engines.build import build
from belvedere_serving.engines.preprocess import TextPreprocessor
from belvedere_serving.engines.runtime import Arrays, Runtime
from belvedere_serving.server.config import ServerConfig
from belvedere_serving.server.engine_cache import LoadedEngine, load
from belvedere_serving.server.metrics import NoMetrics
from belvedere_serving.server.service import InferenceService, assemble, warm_up
from belvedere_training.data.corpus import corpus_texts, load_split
from belvedere_training.model.config import sized
from belvedere_training.model.tokenizer import learn
from belvedere_training.model.vision_language import VisionLanguageModel
from belvedere_training.publish import Publication, evidence_of, publish
from engine_rows import GATE, Say
from training_subject import prepared

CONTEXTS = (20, 77)
"""Longest text of our smallest model, and of CLIP and our larger ones."""
CLIENTS, NUM_TEXTS, ROUNDS, SECONDS = 32, 1000, 5, 3.0


class Padded:
    """A runtime that wants every text in full length, as engines were before."""

    def __init__(self, runtime: Runtime, dimension: int) -> None:
        self._runtime, self._dimension = runtime, dimension

    def run(self, model_name: str, arrays: Arrays) -> dict[str, np.ndarray]:
        return self._runtime.run(model_name, arrays)

    def dimension(self, model_name: str) -> int:
        return self._dimension

    def flexible(self, model_name: str) -> bool:
        return False


def length_rows(store: ArtifactStore, folder: Path, say: Say) -> list[Row]:
    """Return the throughput of texts grouped by length beside all padded to the longest, for each context."""
    data = prepared(folder, store.url, None, 0).data
    texts = _texts(data)
    return [asyncio.run(_row(store, folder, data, texts, context, say)) for context in CONTEXTS]


def _texts(data: Path) -> list[bytes]:
    """Return captions of the held-out set in both languages, in an order of their own."""
    records = load_split(data, "heldout_style").records
    found = sorted({str(caption) for record in records for caption in record["captions"].values()})
    chosen = np.random.default_rng(0).permutation(len(found))[:NUM_TEXTS]
    return [found[place].encode() for place in chosen]


async def _row(store: ArtifactStore, folder: Path, data: Path, texts: list[bytes], context: int, say: Say) -> Row:
    engine = _engine(store, folder, data, context, say)
    full = replace(engine, runtime=Padded(engine.runtime, engine.runtime.dimension(EMBED_TEXT)))
    rates: dict[str, list[float]] = {"grouped": [], "padded": []}
    services = {"grouped": _service(engine), "padded": _service(full)}
    for number in range(ROUNDS + 1):
        for name, service in services.items():
            rate = await _rate(service, texts)
            if number > 0:  # the first round warms up
                rates[name].append(rate)
    for service in services.values():
        await service.close()
    ratios = [one / other for one, other in zip(rates["grouped"], rates["padded"], strict=True)]
    tokens = _num_tokens(engine.text, texts)
    return result(
        f"text_length_throughput_{context}",
        statistics.median(ratios),
        "x",
        "higher",
        1.0,
        peer="all padded to the longest",
        peer_value=statistics.median(rates["padded"]),
        own_value=statistics.median(rates["grouped"]),
        rounds=ROUNDS,
        spread=[min(ratios), max(ratios)],
        note=f"{len(texts)} captions of {min(tokens)} to {max(tokens)} tokens, median {statistics.median(tokens):.0f}, "
        f"of at most {context}; {CLIENTS} clients in one process, fp32, one thread",
    )


def _num_tokens(text: TextPreprocessor, texts: list[bytes]) -> list[int]:
    return [text.num_tokens([one]) for one in texts]


def _engine(store: ArtifactStore, folder: Path, data: Path, context: int, say: Say) -> LoadedEngine:
    """Return the engine of an untrained model of size nano with texts of up to so many tokens."""
    config = sized("nano")
    with_length = config.text.model_copy(update={"max_length": context})
    train, held_out = load_split(data, "train"), load_split(data, "heldout_style")
    tokenizer = learn(corpus_texts(train), with_length.vocab_size, context)
    vocabulary = with_length.model_copy(update={"vocab_size": tokenizer.get_vocab_size()})
    torch.manual_seed(0)
    model = VisionLanguageModel(config.model_copy(update={"text": vocabulary})).eval()
    publication = Publication(model_name=f"texts-{context}", version=f"texts-{context}")
    pushed = publish(store, model, tokenizer, evidence_of(held_out), publication, tag=f"models/texts-{context}")
    digest = build(store, pushed.digest, EngineTarget(), GATE, say=say).digest
    engine = load(store.pull(digest, folder / f"texts-{context}"), threads=1)
    warm_up(engine, 16)
    return engine


def _service(engine: LoadedEngine) -> InferenceService:
    arguments = {"service": "bench", "model": "bench", "version": "bench-v1", "artifacts": "file:///nowhere"}
    config = ServerConfig.parse({**arguments, "engineDigest": "sha256:" + "0" * 64})
    return assemble(engine, config, NoMetrics())


def _the(request: InferRequest) -> InferRequest:
    return request


async def _rate(service: InferenceService, texts: list[bytes], clock: Callable[[], float] = time.monotonic) -> float:
    """Return how many texts a second are answered to clients that each ask again as soon as they have an answer."""
    end, answered = clock() + SECONDS, 0

    async def ask(number: int) -> None:
        nonlocal answered
        while clock() < end:
            inputs = (Tensor.of_bytes("TEXT", [texts[number % len(texts)]]),)
            request = InferRequest(model_name=EMBED_TEXT, inputs=inputs)
            await service.infer(partial(_the, request), lambda asked, answer: answer, "bench")
            answered, number = answered + 1, number + CLIENTS

    await asyncio.gather(*(ask(number) for number in range(CLIENTS)))
    return answered / SECONDS
