"""The heads of an engine: ONNX programs, and how near they decide and write to the model in torch.

They run in fp32 by ONNX Runtime whatever the towers' target is: docs/adr/0004 has the figures.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from belvedere_platform.errors import CorruptData
from belvedere_platform.protocol import CAPTION, EMBED_IMAGE, EMBED_TEXT, MATCH
from belvedere_platform.resources.engine import ParityReport
from belvedere_serving.engines.export import to_onnx
from belvedere_serving.engines.measure import cosines
from belvedere_serving.engines.source import HeldOut
from belvedere_serving.generation.decoder import HEADS_FILE, INPUTS, OUTPUTS, HeadPrograms, Heads, onnx_heads
from belvedere_serving.generation.generator import Generator, Writing, write_alone

# N pictures, W words, V vocabulary

Array = npt.NDArray[Any]
MOST_PICTURES = 16


@dataclass(frozen=True, kw_only=True)
class BuiltHeads:
    """Files by name, and parity by V2 model name; nothing of a model whose modalities never meet."""

    files: Mapping[str, Path] = field(default_factory=dict)
    parity: Mapping[str, Any] = field(default_factory=dict)


def build_heads(folder: Path, held_out: Mapping[str, HeldOut], say: Callable[[str], None]) -> BuiltHeads:
    """Write the ONNX programs of a model's heads into its folder, and compare them with the source on held-out pictures."""
    heads = Heads.read(folder)
    if not heads.programs:
        return BuiltHeads()
    source = torch_heads(folder, heads)
    files = {HEADS_FILE: folder / HEADS_FILE}
    for name in heads.programs:
        files[f"{name}.onnx"] = folder / f"{name}.onnx"
    engine = onnx_heads(folder)
    assert engine is not None, "the programs were just written"
    parity = {}
    pixels = held_out[EMBED_IMAGE].array[:MOST_PICTURES]
    if heads.match:
        parity[MATCH] = match_parity(source, engine, pixels, held_out[EMBED_TEXT].array)
    if heads.decoder is not None:
        parity[CAPTION] = word_parity(source, engine, pixels)
    for name, report in parity.items():
        say(f"{name}: ONNX Runtime fp32, {report.top1_agreement:.4f} decided alike over {report.samples}")
    return BuiltHeads(files=files, parity={name: report.model_dump(by_alias=True) for name, report in parity.items()})


def torch_heads(folder: Path, heads: Heads) -> HeadPrograms:
    """Return the heads as training exported them, run by torch; each is written as ONNX beside its program on the way."""
    import torch

    modules = {}
    for name in heads.programs:
        path = folder / f"{name}.pt2"
        if not path.is_file():
            raise CorruptData(f"the model lacks {path.name}; publish it again with `belvedere train`")
        program = torch.export.load(path)
        to_onnx(program, name, INPUTS[name], OUTPUTS[name], folder / f"{name}.onnx")
        modules[name] = program.module()

    def run(name: str, arrays: Mapping[str, Array]) -> tuple[Array, ...]:
        with torch.inference_mode():
            found = modules[name](*(torch.from_numpy(np.ascontiguousarray(arrays[one])) for one in INPUTS[name]))
        return tuple(one.numpy() for one in (found if isinstance(found, tuple) else (found,)))

    return HeadPrograms(heads, run)


def match_parity(source: HeadPrograms, engine: HeadPrograms, pixels: Array, tokens: Array) -> ParityReport:
    """Return how alike pictures are judged with their own texts and with the next one's: same side of one half, and cosine."""
    count = min(len(pixels), len(tokens))
    texts = np.concatenate([tokens[:count], np.roll(tokens[:count], 1, axis=0)])

    def scores(heads: HeadPrograms) -> Array:
        features = heads.encode(pixels[:count])
        return heads.match(np.concatenate([features, features]), texts)

    expected, got = scores(source), scores(engine)
    cosine = float(cosines(expected[np.newaxis], got[np.newaxis])[0])
    return ParityReport(
        cosine_min=round(cosine, 8),
        cosine_mean=round(cosine, 8),
        top1_agreement=float(((expected >= 0.5) == (got >= 0.5)).mean()),
        samples=len(texts),
    )


def word_parity(source: HeadPrograms, engine: HeadPrograms, pixels: Array) -> ParityReport:
    """Return the share of words that are the same, place by place: the source without a cache, the engine as it is served.

    The cosines are those of the logits of the first word.
    """
    start, room = source.geometry.start_id, source.geometry.max_length - 1
    expected = [write_alone(source, state, [start], room) for state in source.picture(source.encode(pixels))]
    generator = Generator(engine)
    states = engine.picture(engine.encode(pixels))
    writings = [Writing(prompt=(start,), max_new_tokens=room, picture=state) for state in states]
    for writing in writings:
        generator.add(writing)
    while generator.busy:
        generator.step()
    same = [
        one == other
        for writing, words in zip(writings, expected, strict=True)
        # Where one text has ended and the other goes on, they differ.
        for one, other in itertools.zip_longest([*writing.written, None], [*words, None])
    ]
    values = cosines(_first_logits(source, pixels), _first_logits(engine, pixels))
    return ParityReport(
        cosine_min=round(float(values.min()), 8),
        cosine_mean=round(float(values.mean()), 8),
        top1_agreement=float(np.mean(same)),
        samples=len(same),
    )


def _first_logits(heads: HeadPrograms, pixels: Array) -> Array:
    kept, rows = heads.geometry, len(pixels)
    nothing = np.zeros((rows, 1, kept.layers, 2, kept.width), np.float32)
    tokens, ones = np.full((rows, 1), kept.start_id), np.ones(rows, np.int64)
    return heads.step(tokens, ones, np.zeros(rows, np.int64), nothing, heads.picture(heads.encode(pixels)))[0]
