"""What a GPU makes of the training step and of TensorRT's engines, beside their peers on the same GPU: `make bench-gpu`.

usage: gpu_bench.py --output FILE [--only step|gradcache|engines …]

step: ours and OpenCLIP's from the same weights on the same batch, products in bfloat16 on both sides, in turns; memory is what
tensors took at most. engines: TensorRT's plans of ViT-S/16 at 224 beside the same weights in torch, copies to the GPU and back
included on all sides, in turns. Without a GPU it says so and ends with 2.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from belvedere_platform.artifacts import ArtifactStore
from belvedere_platform.errors import BelvedereError
from belvedere_platform.protocol import EMBED_IMAGE, EMBEDDING
from belvedere_platform.resources.engine import EngineTarget, ParityGate
from belvedere_platform.telemetry.benchmark import Row, earlier_rows, result, write_benchmark
from belvedere_serving.engines import measure
from belvedere_serving.engines.build import EngineResult, build
from belvedere_serving.engines.device import this_gpu
from belvedere_serving.engines.loading import load_runtime
from belvedere_serving.engines.runtime import TOWER_INPUT
from ending import end_in_order
from scratch import scratch
from training_steps import Place, cache_memory_row, step_rows
from vision import Vision, push_model

ON_GPU = Place(
    device="cuda", batch=256, rounds=7, steps=10, clock="wall_seconds", cache_batch=256, said="bfloat16", prefix="gpu_"
)  # fmt: skip
ENGINE_BATCHES = (1, 64)
GATE = ParityGate(cosine_minimum=0.999, top1_agreement_minimum=0.9)


def engine_rows(folder: Path) -> list[Row]:
    """Return how much faster TensorRT's plans are than torch on the same GPU, one picture and many at a time."""
    store, vision = ArtifactStore((folder / "artifacts").as_uri()), Vision().eval()
    model = push_model(store, size=224, vision=vision, name="vit-s")
    runs: dict[str, Callable[[npt.NDArray[Any]], object]] = {
        "torch fp32": _in_torch(vision, torch.float32),
        "torch fp16": _in_torch(vision, torch.float16),
    }
    engines: dict[str, EngineResult] = {}
    rows = []
    for precision in ("fp32", "fp16", "int8"):
        started = time.monotonic()
        try:
            target = EngineTarget.model_validate({"runtime": "tensorrt", "precision": precision, "device": "gpu"})
            engine = build(store, model, target, GATE, say=lambda message: print(message, flush=True))
        except BelvedereError as error:
            rows.append(result(f"gpu_tensorrt_{precision}_speedup", None, "x", "higher", None, note=str(error)[:300]))
            continue
        print(f"{precision}: built in {time.monotonic() - started:.0f} s", flush=True)
        engines[precision] = engine
        runs[precision] = _in_tensorrt(store, engine, folder / precision)
    pixels = np.random.default_rng(0).standard_normal((max(ENGINE_BATCHES), 3, 224, 224), np.float32)
    for batch in ENGINE_BATCHES:
        part = pixels[:batch]
        each = {name: partial(run, part) for name, run in runs.items()}
        taken = measure.milliseconds(each, rounds=7, repeats=20)
        medians = {name: float(np.median(values)) for name, values in taken.items()}
        rows += [_engine_row(precision, batch, medians, engine) for precision, engine in engines.items()]
    return rows


def _engine_row(precision: str, batch: int, medians: dict[str, float], engine: EngineResult) -> Row:
    parity, peer = engine.config["parity"][EMBED_IMAGE], "torch fp32"
    note = (
        f"ViT-S/16 at 224, batch {batch}, ms; {engine.config['device']}; beside torch fp16 "
        f"{medians['torch fp16'] / medians[precision]:.2f} x; cosine min {parity['cosineMin']:.5f}, mean "
        f"{parity['cosineMean']:.5f}; {'passed' if engine.passed else 'failed'} parity"
    )
    name = f"gpu_tensorrt_{precision}_speedup" + ("" if batch == 1 else f"_{batch}")
    sides = {"own_value": medians[precision], "peer": peer, "peer_value": medians[peer], "rounds": 7}
    return result(name, medians[peer] / medians[precision], "x", "higher", None, note=note, **sides)


def _in_torch(vision: torch.nn.Module, dtype: torch.dtype) -> Callable[[npt.NDArray[Any]], object]:
    """Return what runs a batch in torch on the GPU, in a copy of the weights in this format."""
    copy = Vision().eval().to("cuda", dtype)
    copy.load_state_dict(vision.state_dict())

    def run(pixels: npt.NDArray[Any]) -> object:
        with torch.inference_mode():
            return copy(torch.from_numpy(pixels).cuda().to(dtype)).float().cpu().numpy()

    return run


def _in_tensorrt(store: ArtifactStore, engine: EngineResult, folder: Path) -> Callable[[npt.NDArray[Any]], object]:
    loaded = load_runtime(store.pull(engine.digest, folder), (EMBED_IMAGE,), threads=1)
    return lambda pixels: loaded.run(EMBED_IMAGE, {TOWER_INPUT[EMBED_IMAGE]: pixels})[EMBEDDING]


GROUPS: dict[str, Callable[[Path], list[Row]]] = {
    "step": lambda folder: step_rows(folder, ON_GPU),
    "gradcache": lambda _: [cache_memory_row(ON_GPU)],
    "engines": engine_rows,
}


def main() -> int:
    """Measure what is asked for and write the file after each group."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--only", action="append", choices=list(GROUPS))
    options = parser.parse_args()
    end_in_order()
    if (gpu := this_gpu()) is None:
        print("bench-gpu: this machine has no NVIDIA GPU that torch can use", file=sys.stderr)
        return 2
    print(gpu, flush=True)
    started, rows = time.monotonic(), earlier_rows(options.output)
    with scratch("belvedere-bench-") as folder:
        for group in options.only or GROUPS:
            new = GROUPS[group](folder)
            names = {row["name"] for row in new}
            rows = [*(row for row in rows if row["name"] not in names), *new]
            seconds = round(time.monotonic() - started, 1)
            write_benchmark(options.output, rows, seconds=seconds, packages=("belvedere", "torch"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
