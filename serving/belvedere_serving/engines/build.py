"""Builds an engine: export, quantize, compare with the source, time, push. What was measured decides nothing here."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from belvedere_platform.artifacts import ArtifactKind, ArtifactNotFound, ArtifactStore, Descriptor
from belvedere_platform.protocol import EMBED_IMAGE, EMBED_TEXT
from belvedere_platform.resources.engine import EngineTarget, LatencyReport, ParityGate, ParityReport
from belvedere_serving.engines import measure, quantize
from belvedere_serving.engines.device import Device, engine_tag, this_device, toolchain
from belvedere_serving.engines.export import export
from belvedere_serving.engines.measure import Source
from belvedere_serving.engines.runtime import TOWER_INPUT, OnnxRuntime
from belvedere_serving.engines.source import HeldOut, TorchRuntime, answerable, check_source, read_held_out

TOWERS = (EMBED_TEXT, EMBED_IMAGE)
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class EngineResult:
    """An engine in the store, and its figures."""

    digest: str
    tag: str
    reused: bool
    passed: bool
    size_bytes: int
    config: Mapping[str, Any]

    def as_json(self) -> dict[str, Any]:
        """Return what the command prints: the fields of an Engine's status, and whether the gate held."""
        figures = {
            key: self.config[key] for key in ("modelDigest", "target", "parity", "latency", "toolchain", "device")
        }
        return {
            "digest": self.digest,
            "tag": self.tag,
            "reused": self.reused,
            "passed": self.passed,
            "sizeBytes": self.size_bytes,
            **figures,
            "methods": self.config["methods"],
            "retrieval": self.config["retrieval"],
        }


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    """One tower built one way."""

    method: str
    file: Path
    runtime: OnnxRuntime
    parity: ParityReport
    embeddings: measure.Embeddings


@dataclass(frozen=True, kw_only=True)
class _Bench:
    """What candidates of all towers are measured against."""

    torch: TorchRuntime
    inputs: Mapping[str, HeldOut]
    source: Source
    device: Device
    gate: ParityGate
    folder: Path
    say: Say


def build(
    store: ArtifactStore,
    model: str,
    target: EngineTarget,
    gate: ParityGate,
    *,
    tag: str | None = None,
    say: Say = lambda message: None,
) -> EngineResult:
    """Return the engine of a model for a target: the one that is there, or a new one. It is pushed even if parity fails."""
    described = store.resolve(model)
    device, tools = this_device(), toolchain()
    own_tag = engine_tag(described.digest, target.runtime, target.precision, tools, device)
    if (found := _find(store, own_tag, gate)) is not None:
        say(f"engine {own_tag} is there already: {found.digest}")
        return _tagged(store, found, tag)
    with tempfile.TemporaryDirectory(prefix="belvedere-engine-") as scratch, one_torch_thread():
        bench = _prepare(store, described, Path(scratch), gate, device, say)
        chosen, config = _compile(bench, target.precision)
        config |= {
            "modelDigest": described.digest,
            "target": target.model_dump(by_alias=True),
            "toolchain": tools,
            "device": str(device),
            "parityGate": gate.model_dump(by_alias=True),
        }
        descriptor = store.push(ArtifactKind.ENGINE, _files(bench.folder, chosen), config=config, tag=own_tag)
    return _tagged(store, _result(store, descriptor, own_tag, gate, reused=False), tag)


def _find(store: ArtifactStore, own_tag: str, gate: ParityGate) -> EngineResult | None:
    try:
        descriptor = store.resolve(own_tag)
    except ArtifactNotFound:
        return None
    found = _result(store, descriptor, own_tag, gate, reused=True)
    # Among several ways to int8 the gate has a word, so another gate may be met by another engine.
    if found.passed or found.config["parityGate"] == gate.model_dump(by_alias=True):
        return found
    return None


def _result(store: ArtifactStore, descriptor: Descriptor, tag: str, gate: ParityGate, *, reused: bool) -> EngineResult:
    config = store.config(descriptor.digest)
    reports = [ParityReport.model_validate(report) for report in config["parity"].values()]
    return EngineResult(
        digest=descriptor.digest,
        tag=tag,
        reused=reused,
        passed=all(measure.holds(report, gate) for report in reports),
        size_bytes=sum(entry.size for entry in descriptor.files),
        config=config,
    )


def _tagged(store: ArtifactStore, result: EngineResult, tag: str | None) -> EngineResult:
    if tag is not None and tag != result.tag:
        store.tag(result.digest, tag)
    return result


def _prepare(
    store: ArtifactStore, model: Descriptor, scratch: Path, gate: ParityGate, device: Device, say: Say
) -> _Bench:
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
    return _Bench(torch=torch, inputs=inputs, source=source, device=device, gate=gate, folder=folder, say=say)


def _compile(bench: _Bench, precision: str) -> tuple[dict[str, _Candidate], dict[str, Any]]:
    """Return the best candidate of each tower, and the figures for the engine's config."""
    chosen: dict[str, _Candidate] = {}
    methods: dict[str, Any] = {}
    latencies: dict[str, LatencyReport] = {}
    for tower in TOWERS:
        candidates = _candidates(bench, tower, precision)
        chosen[tower], methods[tower] = _choose(bench, tower, candidates)
        latencies[tower] = measure.latency(chosen[tower].runtime, bench.torch, tower, bench.inputs[tower].array)
        bench.say(_sentence(tower, chosen[tower], latencies[tower]))
    texts, images = chosen[EMBED_TEXT].embeddings, chosen[EMBED_IMAGE].embeddings
    return chosen, {
        "parity": {tower: candidate.parity.model_dump(by_alias=True) for tower, candidate in chosen.items()},
        "latency": {tower: report.model_dump(by_alias=True) for tower, report in latencies.items()},
        "methods": methods,
        "retrieval": {"top1Agreement": measure.top1_agreement(bench.source, texts, images), "texts": len(texts)},
    }


def _candidates(bench: _Bench, tower: str, precision: str) -> list[_Candidate]:
    exported = bench.folder / f"{tower}-fp32.onnx"
    export(bench.torch.programs[tower], tower, exported)
    if precision == "fp32":
        return [_candidate(bench, tower, "fp32", exported)]
    prepared = bench.folder / f"{tower}-prepared.onnx"
    quantize.prepare(exported, prepared)
    made = []
    for method in quantize.METHODS[tower]:
        file = bench.folder / f"{tower}-{method}.onnx"
        inputs = {TOWER_INPUT[tower]: bench.inputs[tower].array}
        quantize.quantize(method, tower, prepared, file, inputs, bench.device)
        made.append(_candidate(bench, tower, method, file))
    return made


def _candidate(bench: _Bench, tower: str, method: str, file: Path) -> _Candidate:
    runtime = OnnxRuntime({tower: file})
    embeddings = measure.embed(runtime, tower, bench.inputs[tower].array)
    report = measure.parity(tower, bench.source, embeddings)
    return _Candidate(method=method, file=file, runtime=runtime, parity=report, embeddings=embeddings)


def _choose(bench: _Bench, tower: str, candidates: list[_Candidate]) -> tuple[_Candidate, dict[str, Any]]:
    """Return the fastest candidate that is near enough, or the nearest when none is, and what all of them showed."""
    array = bench.inputs[tower].array
    runs = {item.method: measure.one_by_one(item.runtime, tower, array) for item in candidates}
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
        }
        for item in candidates
    }
    return best, shown


def _sentence(tower: str, candidate: _Candidate, latency: LatencyReport) -> str:
    near, ratio = candidate.parity, latency.torch_p50_milliseconds / latency.p50_milliseconds
    return (
        f"{tower}: {candidate.method}, cosine min {near.cosine_min:.5f} mean {near.cosine_mean:.5f}, "
        f"top-1 agreement {near.top1_agreement:.3f} over {near.samples}, "
        f"p50 {latency.p50_milliseconds:.3f} ms against {latency.torch_p50_milliseconds:.3f} ms in torch ({ratio:.2f} x)"
    )


def _files(folder: Path, chosen: Mapping[str, _Candidate]) -> dict[str, Path | bytes]:
    carried: dict[str, Path | bytes] = {name: folder / name for name in ("tokenizer.json", "preprocess.json")}
    return {**{f"{tower}.onnx": candidate.file for tower, candidate in chosen.items()}, **carried}


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Let torch use one thread, as the engine does: both are timed on the same footing."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
