"""Decides which programs of the heads run in int8: those that stay within the parity gate and are faster for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from belvedere_platform.resources.engine import ParityGate, ParityReport
from belvedere_serving.engines import measure, quantize
from belvedere_serving.engines.device import Device
from belvedere_serving.engines.runtime import onnx_session
from belvedere_serving.generation.decoder import DECODE_STATE, DECODE_STEP, ENCODE_IMAGE, MATCH_PROGRAM, HeadPrograms
from belvedere_serving.generation.generator import write_alone

Array = npt.NDArray[Any]
Files = Mapping[str, Path]
ROUNDS, REPEATS = 3, 10
PAST = 16
"""Words behind the one that is timed."""


@dataclass(frozen=True, kw_only=True)
class Int8:
    """What a program must hold to stay in 8 bits, and on what."""

    gate: ParityGate
    device: Device


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What a program in 8 bits showed."""

    kept: bool
    near: bool
    milliseconds: float
    fp32_milliseconds: float


@dataclass(frozen=True)
class Reference:
    """The source, held-out inputs, and what the source says to them, worked out once."""

    source: HeadPrograms
    pixels: Array
    tokens: Array

    @cached_property
    def scores(self) -> Array:
        """Return its judgement of pictures and texts."""
        return judged(self.source, self.pixels, self.tokens)

    @cached_property
    def words(self) -> list[list[int]]:
        """Return what it writes about each picture, without a cache."""
        start, room = self.source.geometry.start_id, self.source.geometry.max_length - 1
        states = self.source.picture(self.source.encode(self.pixels))
        return [list(write_alone(self.source, state, [start], room)) for state in states]

    @cached_property
    def logits(self) -> Array:
        """Return what it thinks of each first word."""
        return first_logits(self.source, self.pixels)


def judged(heads: HeadPrograms, pixels: Array, tokens: Array) -> Array:
    """Return the scores of pictures with their own texts and with the next one's."""
    count = min(len(pixels), len(tokens))
    texts = np.concatenate([tokens[:count], np.roll(tokens[:count], 1, axis=0)])
    features = heads.encode(pixels[:count])
    return heads.match(np.concatenate([features, features]), texts)


def first_logits(heads: HeadPrograms, pixels: Array) -> Array:
    """Return the logits of the first word about each picture."""
    states = heads.picture(heads.encode(pixels))
    return heads.step(*_step_inputs(heads, states, past=1, kept=0))[0]


def _step_inputs(heads: HeadPrograms, states: Array, *, past: int, kept: int) -> tuple[Array, ...]:
    """Return the inputs of a step of one new token a sequence, with so many kept places of which `kept` hold tokens."""
    geometry, rows = heads.geometry, len(states)
    tokens, ones = np.full((rows, 1), geometry.start_id), np.ones(rows, np.int64)
    memory = np.zeros((rows, past, geometry.layers, 2, geometry.width), np.float32)
    return tokens, ones, np.full(rows, kept, np.int64), memory, states


def smallest(
    files: Files, int8: Int8, reports: Callable[[Files], Mapping[str, ParityReport]], reference: Reference
) -> tuple[dict[str, Path], dict[str, Trial]]:
    """Return the programs with as many in int8 as are near enough and faster, tried one after the other, and what each showed."""
    chosen, tried = dict(files), {}
    for name, path in files.items():
        small = path.with_name(f"{name}-int8.onnx")
        quantize.dynamic(path, small, int8.device)
        near = all(measure.holds(report, int8.gate) for report in reports({**chosen, name: small}).values())
        times = _milliseconds(name, path, small, reference)
        kept = near and times["int8"] < times["fp32"]
        tried[name] = Trial(
            kept=kept,
            near=near,
            milliseconds=round(times["int8"], 4),
            fp32_milliseconds=round(times["fp32"], 4),
        )
        if kept:
            chosen[name] = small
    return chosen, tried


def _milliseconds(name: str, exact: Path, small: Path, reference: Reference) -> dict[str, float]:
    """Return the median time of a program for one input, in both precisions, in turns."""
    inputs = _inputs_of(name, reference)
    sessions = {"fp32": onnx_session(exact, threads=1), "int8": onnx_session(small, threads=1)}
    named = {
        kind: dict(zip([one.name for one in session.get_inputs()], inputs, strict=True))
        for kind, session in sessions.items()
    }
    runs = {kind: _run(session, named[kind]) for kind, session in sessions.items()}
    taken = measure.milliseconds(runs, rounds=ROUNDS, repeats=REPEATS)
    return {kind: float(np.median(values)) for kind, values in taken.items()}


def _run(session: Any, inputs: Mapping[str, Array]) -> Callable[[], object]:
    return lambda: session.run(None, inputs)


def _inputs_of(name: str, reference: Reference) -> tuple[Array, ...]:
    heads, pixels = reference.source, reference.pixels[:1]
    if name == ENCODE_IMAGE:
        return (pixels,)
    features = heads.encode(pixels)
    if name == MATCH_PROGRAM:
        return features, reference.tokens[:1]
    if name == DECODE_STATE:
        return (features,)
    assert name == DECODE_STEP
    return _step_inputs(heads, heads.picture(features), past=PAST, kept=PAST)
