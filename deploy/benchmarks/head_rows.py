"""What the heads of a model are in int8: their bytes, how long a text takes, and how many words stay the same."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from belvedere_platform.telemetry.benchmark import Row, result
from belvedere_serving.engines import quantize
from belvedere_serving.engines.device import this_device
from belvedere_serving.generation.decoder import HEADS_FILE, HeadPrograms, Heads, onnx_heads, onnx_programs
from belvedere_serving.generation.generator import CacheOptions, Generator
from generation import ROUNDS, encoded_and_pixels, write

NUM_PICTURES, NUM_WORDS = 16, 48
NOTE = "size small, topology fusion, seeded weights, one thread; every program in int8, where a build keeps those that pass its gate and are faster"


def int8_head_rows(folder: Path, say: Callable[[str], None]) -> list[Row]:
    """Return the rows of the heads that the group `generation` has exported into a folder."""
    say("the heads in int8")
    exact, heads = onnx_heads(folder), Heads.read(folder)
    assert exact is not None, f"there is no {HEADS_FILE}"
    files = {name: folder / f"{name}.onnx" for name in heads.programs}
    small_files = {name: folder / f"{name}-int8.onnx" for name in files}
    for name, path in files.items():
        quantize.dynamic(path, small_files[name], this_device())
    small = onnx_programs(heads, small_files)
    size, exact_size = (sum(path.stat().st_size for path in paths.values()) for paths in (small_files, files))
    alike = _alike(exact, small)
    taken = _milliseconds({"fp32": exact, "int8": small})
    gains = [other / own for own, other in zip(taken["int8"], taken["fp32"], strict=True)]
    return [
        result(
            "heads_int8_bytes_ratio",
            size / exact_size,
            "share",
            "lower",
            None,
            own_value=size,
            peer_value=exact_size,
            peer="fp32",
            note=NOTE,
        ),
        result(
            "heads_int8_speedup",
            statistics.median(gains),
            "x",
            "higher",
            None,
            peer="the same programs in fp32",
            peer_value=statistics.median(taken["fp32"]),
            own_value=statistics.median(taken["int8"]),
            rounds=ROUNDS,
            spread=[min(gains), max(gains)],
            note=f"ms from the pixels of one picture to the last of {NUM_WORDS} words; {NOTE}",
        ),
        result(
            "heads_int8_token_agreement",
            alike,
            "share",
            "higher",
            None,
            peer="the same programs in fp32",
            note=f"of {NUM_PICTURES * NUM_WORDS} words, place by place: a word that differs makes those behind it differ, and drawn weights"
            f" hardly prefer one to another; what a trained model keeps stands in its engine's parity; {NOTE}",
        ),
    ]


def _texts(programs: HeadPrograms, count: int) -> list[list[int]]:
    _, pixels = encoded_and_pixels(count)
    states = list(programs.picture(programs.encode(pixels)))
    return write(Generator(programs, CacheOptions(num_blocks=8 * count)), states, [NUM_WORDS] * count)


def _alike(exact: HeadPrograms, small: HeadPrograms) -> float:
    """Return the share of words that are the same in the same place."""
    return float(np.mean(np.array(_texts(exact, NUM_PICTURES)) == np.array(_texts(small, NUM_PICTURES))))


def _milliseconds(sides: dict[str, HeadPrograms]) -> dict[str, list[float]]:
    """Return how long one text takes, in rounds by turns."""
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(ROUNDS + 1):
        for name, programs in sides.items():
            started = time.perf_counter()
            _texts(programs, 1)
            if number > 0:  # the first round warms up
                taken[name].append(1000 * (time.perf_counter() - started))
    return taken
