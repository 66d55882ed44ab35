"""Makes the engines of one variant, tower by tower, and measures each beside the source model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from belvedere_platform.artifacts import ArtifactStore, Descriptor
from belvedere_platform.protocol import EMBED_IMAGE, EMBED_TEXT
from belvedere_platform.resources.engine import LatencyReport, ParityGate, ParityReport
from belvedere_serving.engines import measure, quantize
from belvedere_serving.engines.device import Device
from belvedere_serving.engines.export import export
from belvedere_serving.engines.loading import ENGINE_FILE, SUFFIXES, LoadedRuntime, engine_json, open_runtime
from belvedere_serving.engines.measure import Source
from belvedere_serving.engines.node_cache import cache_root
from belvedere_serving.engines.runtime import TOWER_INPUT, Variant
from belvedere_serving.engines.source import (
    PROGRAMS,
    HeldOut,
    TorchRuntime,
    answerable,
    check_source,
    read_held_out,
)

TOWERS = (EMBED_TEXT, EMBED_IMAGE)
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What candidates of all towers are measured against."""

    torch: TorchRuntime
    inputs: Mapping[str, HeldOut]
    source: Source
    device: Device
    gate: ParityGate
    folder: Path
    say: Say
    exported: dict[tuple[str, str], Path] = field(default_factory=dict)
    """ONNX models made so far, by tower and method: several variants start from the same."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One tower built one way. `file` is the one that its runtime opens; others of the same stem belong to it."""

    variant: Variant
    method: str
    file: Path
    runtime: LoadedRuntime
    parity: ParityReport
    embeddings: measure.Embeddings
    length_cosines: Mapping[int, float] = field(default_factory=dict)
    """By length that texts are padded to, the smallest cosine; of an engine that takes one length, nothing."""


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """An engine of one variant: the best candidate of each tower, and the figures for its config."""

    variant: Variant
    towers: Mapping[str, Candidate]
    figures: Mapping[str, Any]

    def passed_by(self, gate: ParityGate) -> bool:
        """Whether every tower is near enough for a gate."""
        return all(measure.holds(tower.parity, gate) for tower in self.towers.values())


def prepare(
    store: ArtifactStore, model: Descriptor, scratch: Path, gate: ParityGate, device: Device, say: Say
) -> Bench:
    """Return the bench of a model: its source in torch, and the held-out inputs with its answers."""
    folder = store.pull(model.digest, scratch / "model")
    check_source(folder, model.digest)
    say(f"model {model.digest[:19]} read; device {device}")
    torch, held_out = TorchRuntime(folder), read_held_out(folder)
    inputs, answers = {}, {}
    for tower, given in held_out.items():
        inputs[tower], answers[tower] = answerable(torch, tower, given)
        if left_out := len(given.ids) - len(inputs[tower].ids):
            say(f"{tower}: the source model itself fails on {left_out} of {len(given.ids)} held-out inputs")
    source = Source(texts_NE=answers[EMBED_TEXT], images_NE=answers[EMBED_IMAGE])
    return Bench(torch=torch, inputs=inputs, source=source, device=device, gate=gate, folder=folder, say=say)


def compile_variant(bench: Bench, variant: Variant) -> Compiled:
    """Return the best engine of a variant."""
    chosen: dict[str, Candidate] = {}
    methods: dict[str, Any] = {}
    latencies: dict[str, LatencyReport] = {}
    for tower in TOWERS:
        chosen[tower], methods[tower] = _choose(bench, tower, _candidates(bench, tower, variant))
        latencies[tower] = measure.latency(chosen[tower].runtime, bench.torch, tower, bench.inputs[tower])
        bench.say(_sentence(tower, chosen[tower], latencies[tower]))
    texts, images = chosen[EMBED_TEXT].embeddings, chosen[EMBED_IMAGE].embeddings
    figures = {
        "parity": {tower: candidate.parity.model_dump(by_alias=True) for tower, candidate in chosen.items()},
        "latency": {tower: report.model_dump(by_alias=True) for tower, report in latencies.items()},
        "methods": methods,
        "retrieval": {"top1Agreement": measure.top1_agreement(bench.source, texts, images), "texts": len(texts)},
    }
    return Compiled(variant=variant, towers=chosen, figures=figures)


def curve(bench: Bench, engine: Compiled) -> dict[str, Any]:
    """Return time and throughput of each tower by the size of the batch and of the inputs."""
    return {
        tower: [point.model_dump(by_alias=True) for point in measure.curves(candidate.runtime, tower, inputs)]
        for tower, candidate in engine.towers.items()
        for inputs in [bench.inputs[tower].array]
    }


def engine_files(bench: Bench, engine: Compiled) -> dict[str, Path | bytes]:
    """Return the files of the engine artifact by name."""
    files: dict[str, Path | bytes] = {name: bench.folder / name for name in ("tokenizer.json", "preprocess.json")}
    for tower, candidate in engine.towers.items():
        for suffix in SUFFIXES[engine.variant.runtime]:
            files[f"{tower}{suffix}"] = candidate.file.with_suffix(suffix)
    runtimes = {tower: candidate.runtime for tower, candidate in engine.towers.items()}
    return {**files, ENGINE_FILE: engine_json(engine.variant, runtimes)}


def _candidates(bench: Bench, tower: str, variant: Variant) -> list[Candidate]:
    if variant.runtime == "torch":
        return [_candidate(bench, tower, variant, "exported", bench.folder / PROGRAMS[tower])]
    if variant.runtime == "litert":
        return [_candidate(bench, tower, variant, variant.precision, _converted(bench, tower, variant))]
    methods = quantize.methods(tower, variant.runtime) if variant.precision == "int8" else (variant.precision,)
    return [_candidate(bench, tower, variant, method, _built(bench, tower, variant, method)) for method in methods]


def _built(bench: Bench, tower: str, variant: Variant, method: str) -> Path:
    """Return the file that a runtime opens, made from an ONNX model of the method."""
    if variant.runtime == "tensorrt":
        return tensorrt_plan(bench, tower, method)
    source = onnx_model(bench, tower, method if variant.precision == "int8" else "fp32")
    if variant.runtime == "onnxruntime":
        return source
    target = bench.folder / f"{tower}-{variant.runtime}-{method}{SUFFIXES[variant.runtime][0]}"
    from belvedere_serving.engines.openvino import convert

    convert(source, target)
    return target


def tensorrt_plan(bench: Bench, tower: str, method: str) -> Path:
    """Return the plan of TensorRT. What is not in 8 bits is in 16, unless fp32 is asked for."""
    from belvedere_serving.engines.tensorrt import build_plan, timing_cache

    source = onnx_model(bench, tower, method)
    if method not in ("fp32", "fp16"):
        half = bench.folder / f"{tower}-{method}-half.onnx"
        quantize.halve(source, half)
        source = half
    target = bench.folder / f"{tower}-tensorrt-{method}.plan"
    build_plan(source, target, bench.inputs[tower].array.shape[1:], timing_cache(bench.device, cache_root()))
    return target


def _converted(bench: Bench, tower: str, variant: Variant) -> Path:
    """Return the file of LiteRT, which is made from the source itself and not from ONNX."""
    from belvedere_serving.engines.litert import convert

    target = bench.folder / f"{tower}-litert-{variant.precision}.tflite"
    bench.say(f"{tower}: converting for LiteRT, {variant.precision}")
    convert(bench.folder / PROGRAMS[tower], tower, target, variant.precision, bench.inputs[tower].array[:1])
    return target


def onnx_model(bench: Bench, tower: str, method: str) -> Path:
    """Return the tower as ONNX, in fp32, fp16 or quantized by a method. What was made once is not made again."""
    key = (tower, method)
    if key in bench.exported:
        return bench.exported[key]
    file = bench.folder / f"{tower}-{method}.onnx"
    if method == "fp32":
        export(bench.torch.programs[tower], tower, file)
    elif method == "prepared":
        quantize.prepare(onnx_model(bench, tower, "fp32"), file)
    elif method == "fp16":
        quantize.halve(onnx_model(bench, tower, "fp32"), file)
    else:
        inputs = {TOWER_INPUT[tower]: bench.inputs[tower].array}
        quantize.quantize(method, tower, onnx_model(bench, tower, "prepared"), file, inputs, bench.device)
    bench.exported[key] = file
    return file


def _candidate(bench: Bench, tower: str, variant: Variant, method: str, file: Path) -> Candidate:
    runtime = open_runtime(variant, {tower: file})
    served = bench.inputs[tower].as_served_by(runtime, tower)
    embeddings = measure.embed(runtime, tower, served.array, served.lengths)
    report, by_length = measure.parity(tower, bench.source, embeddings), {}
    if served.lengths is not None:
        by_length = measure.length_cosines(runtime, bench.source.texts_NE, served.array, served.lengths)
        # An engine is as near as in its worst length: a batch is as long as the longest text in it.
        report = report.model_copy(update={"cosine_min": min(report.cosine_min, *by_length.values())})
    return Candidate(
        variant=variant,
        method=method,
        file=file,
        runtime=runtime,
        parity=report,
        embeddings=embeddings,
        length_cosines=by_length,
    )


def one_by_one(bench: Bench, tower: str, runtime: LoadedRuntime) -> Callable[[], object]:
    """Return a function that runs the next held-out input alone, in the length that the runtime is given it in."""
    served = bench.inputs[tower].as_served_by(runtime, tower)
    return measure.one_by_one(runtime, tower, served.array, served.lengths)


def _choose(bench: Bench, tower: str, candidates: list[Candidate]) -> tuple[Candidate, dict[str, Any]]:
    """Return the fastest candidate that is near enough, or the nearest when none is, and what all of them showed."""
    runs = {item.method: one_by_one(bench, tower, item.runtime) for item in candidates}
    taken = measure.milliseconds(runs, rounds=3, repeats=10) if len(candidates) > 1 else {}
    medians = {method: float(np.median(values)) for method, values in taken.items()}
    near = [item for item in candidates if measure.holds(item.parity, bench.gate)]
    best = (
        min(near, key=lambda item: medians.get(item.method, 0.0))
        if near
        else max(candidates, key=lambda item: item.parity.cosine_min)
    )
    shown = {
        item.method: {
            **item.parity.model_dump(by_alias=True),
            "p50Milliseconds": round(medians[item.method], 4) if item.method in medians else None,
            "chosen": item is best,
            **({"cosineMinByLength": dict(item.length_cosines)} if item.length_cosines else {}),
        }
        for item in candidates
    }
    return best, shown


def _sentence(tower: str, candidate: Candidate, latency: LatencyReport) -> str:
    near, ratio = candidate.parity, latency.torch_p50_milliseconds / latency.p50_milliseconds
    return (
        f"{tower}: {candidate.variant}, {candidate.method}, cosine min {near.cosine_min:.5f} mean {near.cosine_mean:.5f}, "
        f"top-1 agreement {near.top1_agreement:.3f} over {near.samples}, "
        f"p50 {latency.p50_milliseconds:.3f} ms against {latency.torch_p50_milliseconds:.3f} ms in torch ({ratio:.2f} x)"
    )
