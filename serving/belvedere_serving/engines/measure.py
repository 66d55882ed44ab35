"""How near an engine is to its source, and how fast it is beside it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from belvedere_platform.protocol import EMBED_TEXT, EMBEDDING
from belvedere_platform.resources.engine import BatchPoint, LatencyReport, ParityGate, ParityReport
from belvedere_serving.engines.lengths import Lengths, buckets, groups, in_order
from belvedere_serving.engines.loading import LoadedRuntime
from belvedere_serving.engines.runtime import TOWER_INPUT, Arrays, Runtime
from belvedere_serving.engines.source import HeldOut

# N inputs, E embedding.
Embeddings = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Source:
    """The source model's answers to the held-out inputs of both towers."""

    texts_NE: Embeddings
    images_NE: Embeddings


def cosines(a_NE: Embeddings, b_NE: Embeddings) -> npt.NDArray[np.float64]:
    """Return the cosine of each row with the same row of the other. A zero or broken vector has cosine -1."""
    a, b = a_NE.astype(np.float64), b_NE.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        values = np.einsum("ne,ne->n", a, b) / norms
    return np.where(np.isfinite(values), np.clip(values, -1.0, 1.0), -1.0)


def top1_agreement(source: Source, texts_NE: Embeddings, images_NE: Embeddings) -> float:
    """Return the share of texts for which both models find the same picture first."""
    expected = (source.texts_NE @ source.images_NE.T).argmax(axis=1)
    got = (texts_NE @ images_NE.T).argmax(axis=1)
    return float((expected == got).mean())


def parity(tower: str, source: Source, engine_NE: Embeddings) -> ParityReport:
    """Return how near one tower of the engine is, the other tower being the source's."""
    is_text = tower == EMBED_TEXT
    values = cosines(source.texts_NE if is_text else source.images_NE, engine_NE)
    texts, images = (engine_NE, source.images_NE) if is_text else (source.texts_NE, engine_NE)
    return ParityReport(
        cosine_min=round(float(values.min()), 8),
        cosine_mean=round(float(values.mean()), 8),
        top1_agreement=top1_agreement(source, texts, images),
        samples=len(values),
    )


def holds(report: ParityReport, gate: ParityGate) -> bool:
    """Whether an engine is near enough."""
    return report.cosine_min >= gate.cosine_minimum and report.top1_agreement >= gate.top1_agreement_minimum


def embed(
    runtime: Runtime, tower: str, inputs: npt.NDArray[Any], lengths: Lengths | None = None, *, batch: int = 64
) -> Embeddings:
    """Return the embeddings of all inputs, each run with others of its length where texts have one."""
    name = TOWER_INPUT[tower]
    parts = [
        (places[start : start + batch], runtime.run(tower, {name: rows[start : start + batch]})[EMBEDDING])
        for places, rows in groups(inputs, lengths)
        for start in range(0, len(rows), batch)
    ]
    return in_order(parts)


def length_cosines(
    runtime: Runtime, source_NE: Embeddings, tokens_NL: npt.NDArray[Any], lengths: Lengths
) -> dict[int, float]:
    """Return, for each length that texts are padded to, the smallest cosine of those that fit it."""
    found = {}
    for length in buckets(tokens_NL.shape[1]):
        fitting = np.flatnonzero(lengths <= length)
        if len(fitting):
            got = embed(runtime, EMBED_TEXT, tokens_NL[fitting, :length])
            found[length] = round(float(cosines(source_NE[fitting], got).min()), 8)
    return found


def milliseconds(
    runs: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    repeats: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, npt.NDArray[np.float64]]:
    """Return the time of each single run. The candidates take turns, so that a busy machine is as busy for all."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            for _ in range(repeats):
                started = clock()
                run()
                if number > 0:  # the first round warms up
                    taken[name].append(1000 * (clock() - started))
    return {name: np.array(values) for name, values in taken.items()}


LATENCY_SECONDS = 6.0
"""How long the rounds of one tower may take: a slow model is as well known after fewer runs."""


def affordable_repeats(
    runs: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    repeats: int,
    seconds: float = LATENCY_SECONDS,
    clock: Callable[[], float] = time.perf_counter,
) -> int:
    """Return how often each candidate can run in each round within the time; at least twice."""
    for run in runs.values():
        run()  # the first run of anything prepares it
    started = clock()
    for run in runs.values():
        run()
    turn_seconds = max(clock() - started, 1e-9)
    return min(repeats, max(2, int(seconds / ((rounds + 1) * turn_seconds))))


def one_by_one(
    runtime: Runtime, tower: str, inputs: npt.NDArray[Any], lengths: Lengths | None = None
) -> Callable[[], object]:
    """Return a function that runs the next single input on each call, in its own length."""
    ends = [None] * len(inputs) if lengths is None else lengths.tolist()
    singles: Sequence[Arrays] = [
        {TOWER_INPUT[tower]: inputs[row : row + 1, : ends[row]]} for row in range(min(len(inputs), 32))
    ]
    turn = 0

    def run() -> object:
        nonlocal turn
        turn += 1
        return runtime.run(tower, singles[turn % len(singles)])

    return run


CURVE_BATCHES = (1, 2, 4, 8, 16, 32, 64)
SHORT_BATCHES = (1, 8, 64)
"""Of texts shorter than the longest: enough to see what a length costs."""
CURVE_SECONDS = 0.1
"""How long to measure one size of batch: a build shall not take longer for its curve than for the rest."""


def curve(
    runtime: Runtime,
    tower: str,
    inputs: npt.NDArray[Any],
    *,
    clock: Callable[[], float] = time.perf_counter,
    seconds_each: float = CURVE_SECONDS,
    batches: Sequence[int] = CURVE_BATCHES,
) -> list[BatchPoint]:
    """Return time and throughput by the size of the batch, up to one that takes too long; inputs are repeated where there are too few."""
    points = []
    for batch in batches:
        rows = {TOWER_INPUT[tower]: np.resize(inputs, (batch, *inputs.shape[1:]))}
        runtime.run(tower, rows)  # the first run of a size may allocate
        taken: list[float] = []
        while len(taken) < 3 or (sum(taken) < seconds_each and len(taken) < 200):
            started = clock()
            runtime.run(tower, rows)
            taken.append(clock() - started)
        p50 = float(np.median(taken))
        points.append(
            BatchPoint(
                batch=batch,
                size=inputs.shape[-1],
                p50_milliseconds=round(1000 * p50, 4),
                per_second=round(batch / max(p50, 1e-9), 1),
            )
        )
        if p50 > seconds_each:
            # A larger one would hold the build up, and no server would make it.
            break
    return points


def curves(runtime: LoadedRuntime, tower: str, inputs: npt.NDArray[Any]) -> list[BatchPoint]:
    """Return the curve of each size that inputs come in: of pictures one, of texts every length that they are padded to."""
    longest = inputs.shape[-1]
    shorter = buckets(longest)[:-1] if tower == EMBED_TEXT and runtime.flexible(tower) else ()
    points = [point for length in shorter for point in curve(runtime, tower, inputs[:, :length], batches=SHORT_BATCHES)]
    return points + curve(runtime, tower, inputs)


def latency(
    engine: LoadedRuntime, torch: LoadedRuntime, tower: str, held_out: HeldOut, *, rounds: int = 7, repeats: int = 20
) -> LatencyReport:
    """Return the time for one input, engine and torch in alternating rounds, each in the lengths that it takes."""
    runs = {}
    for name, runtime in {"engine": engine, "torch": torch}.items():
        served = held_out.as_served_by(runtime, tower)
        runs[name] = one_by_one(runtime, tower, served.array, served.lengths)
    repeats = affordable_repeats(runs, rounds=rounds, repeats=repeats)
    taken = milliseconds(runs, rounds=rounds, repeats=repeats)
    p50, p95 = (float(np.percentile(taken["engine"], q)) for q in (50, 95))
    return LatencyReport(
        p50_milliseconds=round(p50, 4),
        p95_milliseconds=round(p95, 4),
        torch_p50_milliseconds=round(float(np.median(taken["torch"])), 4),
    )
