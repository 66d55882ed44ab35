"""The heads of an engine: ONNX programs, and how near they decide and write to the model in torch.

ONNX Runtime runs them whatever the towers' runtime is, in fp32 or, where that is near enough and faster, in int8: docs/adr/0004.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from belvedere_platform.errors import CorruptData
from belvedere_platform.protocol import CAPTION, EMBED_IMAGE, EMBED_TEXT, MATCH
from belvedere_platform.resources.engine import ParityReport
from belvedere_serving.engines.export import to_onnx
from belvedere_serving.engines.head_precision import Int8, Reference, Trial, first_logits, judged, smallest
from belvedere_serving.engines.measure import cosines
from belvedere_serving.engines.source import HeldOut
from belvedere_serving.generation.decoder import HEADS_FILE, INPUTS, OUTPUTS, HeadPrograms, Heads, onnx_programs
from belvedere_serving.generation.generator import Generator, Writing

# N pictures, W words, V vocabulary

Array = npt.NDArray[Any]
MOST_PICTURES = 16


@dataclass(frozen=True, kw_only=True)
class BuiltHeads:
    """Files by name, and parity by V2 model name; nothing of a model whose modalities never meet.

    `programs`: of what was tried in int8, how fast it was beside fp32 and whether it stayed.
    """

    files: Mapping[str, Path] = field(default_factory=dict)
    parity: Mapping[str, Any] = field(default_factory=dict)
    programs: Mapping[str, Any] = field(default_factory=dict)


def build_heads(
    folder: Path, held_out: Mapping[str, HeldOut], say: Callable[[str], None], int8: Int8 | None = None
) -> BuiltHeads:
    """Write the ONNX programs of a model's heads into its folder, and compare them with the source on held-out pictures.

    `int8`: what a program must hold to stay in 8 bits; without it all are in fp32.
    """
    heads = Heads.read(folder)
    if not heads.programs:
        return BuiltHeads()
    source = torch_heads(folder, heads)
    files = {name: folder / f"{name}.onnx" for name in heads.programs}
    reference = Reference(source, held_out[EMBED_IMAGE].array[:MOST_PICTURES], held_out[EMBED_TEXT].array)
    tried: dict[str, Trial] = {}
    if int8 is not None:
        files, tried = smallest(files, int8, lambda given: reports(reference, onnx_programs(heads, given)), reference)
    parity = reports(reference, onnx_programs(heads, files))
    kinds = {"int8" if tried.get(name) and tried[name].kept else "fp32" for name in files}
    for name, report in parity.items():
        say(
            f"{name}: ONNX Runtime {' and '.join(sorted(kinds))}, "
            f"{report.top1_agreement:.4f} decided alike over {report.samples}"
        )
    return BuiltHeads(
        files={HEADS_FILE: folder / HEADS_FILE, **{f"{name}.onnx": path for name, path in files.items()}},
        parity={name: report.model_dump(by_alias=True) for name, report in parity.items()},
        programs={name: asdict(trial) for name, trial in tried.items()},
    )


def reports(reference: Reference, engine: HeadPrograms) -> dict[str, ParityReport]:
    """Return how near each head is to its source, by V2 model name."""
    found = {}
    if engine.heads.match:
        found[MATCH] = match_parity(reference, engine)
    if engine.heads.decoder is not None:
        found[CAPTION] = word_parity(reference, engine)
    return found


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


def match_parity(reference: Reference, engine: HeadPrograms) -> ParityReport:
    """Return how alike pictures are judged with their own texts and with the next one's: same side of one half, and cosine."""
    expected, got = reference.scores, judged(engine, reference.pixels, reference.tokens)
    cosine = float(cosines(expected[np.newaxis], got[np.newaxis])[0])
    return ParityReport(
        cosine_min=round(cosine, 8),
        cosine_mean=round(cosine, 8),
        top1_agreement=float(((expected >= 0.5) == (got >= 0.5)).mean()),
        samples=len(got),
    )


def word_parity(reference: Reference, engine: HeadPrograms) -> ParityReport:
    """Return the share of words that are the same, place by place: the source without a cache, the engine as it is served.

    The cosines are those of the logits of the first word.
    """
    start, room = engine.geometry.start_id, engine.geometry.max_length - 1
    generator = Generator(engine)
    states = engine.picture(engine.encode(reference.pixels))
    writings = [Writing(prompt=(start,), max_new_tokens=room, picture=state) for state in states]
    for writing in writings:
        generator.add(writing)
    while generator.busy:
        generator.step()
    same = [
        one == other
        for writing, words in zip(writings, reference.words, strict=True)
        # Where one text has ended and the other goes on, they differ.
        for one, other in itertools.zip_longest([*writing.written, None], [*words, None])
    ]
    values = cosines(reference.logits, first_logits(engine, reference.pixels))
    return ParityReport(
        cosine_min=round(float(values.min()), 8),
        cosine_mean=round(float(values.mean()), 8),
        top1_agreement=float(np.mean(same)),
        samples=len(same),
    )
