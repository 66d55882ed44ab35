"""Puts the heads of an engine together: one reader of pictures and one writer of texts for all of them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from belvedere_platform.protocol import ANSWER, CAPTION, EXPLAIN, MATCH
from belvedere_serving.engines.preprocess import ImagePreprocessor, TextPreprocessor
from belvedere_serving.generation.blocks import blocks_for
from belvedere_serving.generation.decoder import DECODE_STATE, ENCODE_IMAGE, HeadPrograms
from belvedere_serving.generation.generator import CacheOptions, Generator, Writing
from belvedere_serving.server.admission import Lane
from belvedere_serving.server.batching import Batcher, on_thread
from belvedere_serving.server.config import ModelOptions
from belvedere_serving.server.explaining import ExplainModel
from belvedere_serving.server.features import FeatureCache, PictureReader
from belvedere_serving.server.heads import MatchModel, WritingModel, head_metadata, on_pairs
from belvedere_serving.server.metrics import ServerMetrics
from belvedere_serving.server.models import Model
from belvedere_serving.server.statistics import ModelStatistics
from belvedere_serving.server.waiting import BatchPolicy
from belvedere_serving.server.writing import Writer

PLATFORM = "onnxruntime_onnx"
Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class EnginePlace:
    """Where an engine runs: its thread, the one that prepares, and the lane that says whose turn it is."""

    executor: Executor
    preparing: Executor
    lane: Lane
    policy: BatchPolicy


def head_models(
    programs: HeadPrograms,
    text: TextPreprocessor,
    image: ImagePreprocessor,
    config: ModelOptions,
    metrics: ServerMetrics,
    place: EnginePlace,
) -> list[Model]:
    """Return the models of the heads that the engine has."""

    def batcher(name: str, call: Callable[[Array], Array], statistics: ModelStatistics | None = None) -> Batcher:
        run = on_thread(call, place.executor, place.lane.lag)
        return Batcher(name, run, place.policy, metrics, version=config.version, lane=place.lane, statistics=statistics)

    decoder = programs.heads.decoder
    pictures = PictureReader(
        image,
        batcher(ENCODE_IMAGE, programs.encode),
        FeatureCache(round(config.feature_cache_mebibytes * 2**20)),
        preparing=place.preparing,
        state=batcher(DECODE_STATE, programs.picture) if decoder else None,
    )
    shared: dict[str, Any] = {
        "version": config.version,
        "pictures": pictures,
        "max_rows": config.max_rows_a_request,
    }

    def named(name: str) -> dict[str, Any]:
        return {**shared, "metadata": head_metadata(name, config.version, PLATFORM)}

    models: list[Model] = []
    if programs.heads.match:
        counters = ModelStatistics()
        pairs = batcher(MATCH, on_pairs(programs.match), counters)
        models.append(MatchModel(**named(MATCH), batcher=pairs, preprocess=text, statistics=counters))
        models.append(ExplainModel(**{**named(EXPLAIN), "max_rows": 1}, batcher=pairs, preprocess=text))
    if decoder is not None:
        writer = _writer(programs, config, metrics, place, decoder.max_length)
        models += [
            WritingModel(
                **named(name), writer=writer, geometry=decoder, text=text, max_new_tokens=config.max_new_tokens
            )
            for name in (CAPTION, ANSWER)
        ]
    return models


def _writer(
    programs: HeadPrograms, config: ModelOptions, metrics: ServerMetrics, place: EnginePlace, longest: int
) -> Writer:
    """Return what writes the texts of all models that write."""
    return Writer(
        Generator(programs, cache_options(config, longest)),
        metrics,
        executor=place.executor,
        lane=place.lane.lock,
        max_texts=config.max_rows_waiting,
    )


def cache_options(config: ModelOptions, max_length: int) -> CacheOptions:
    """Return the cache asked for; without a number of blocks, as many as all running texts need at their longest."""
    enough = config.max_running_texts * blocks_for(max_length, config.cache_block_size)
    return CacheOptions(
        num_blocks=config.cache_blocks or enough,
        block_size=config.cache_block_size,
        max_running=config.max_running_texts,
        kept=config.cache_precision,
    )


def warm_up_heads(programs: HeadPrograms, image: ImagePreprocessor, text: TextPreprocessor) -> None:
    """Run each head once, so that no client pays for first allocations."""
    features = programs.encode(image.blank())
    if programs.heads.match:
        programs.match(features, text([b""]))
    if programs.heads.decoder is not None:
        generator = Generator(programs, CacheOptions(num_blocks=2))
        start = programs.heads.decoder.start_id
        generator.add(Writing(prompt=(start,), max_new_tokens=2, picture=programs.picture(features)[0]))
        while generator.busy:
            generator.step()
