"""Builds an engine: export, quantize, compare with the source, time, push. What was measured decides nothing here."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from belvedere_platform.artifacts import ArtifactKind, ArtifactNotFound, ArtifactStore, Descriptor
from belvedere_platform.errors import BelvedereError, InvalidInput
from belvedere_platform.resources.engine import CandidateReport, EngineTarget, ParityGate, ParityReport
from belvedere_serving.engines import measure
from belvedere_serving.engines.artifacts import resolve_as
from belvedere_serving.engines.compiling import (
    TOWERS,
    Bench,
    Compiled,
    Say,
    compile_variant,
    curve,
    engine_files,
    one_by_one,
    prepare,
)
from belvedere_serving.engines.device import device_for, engine_tag, this_device, toolchain
from belvedere_serving.engines.head_precision import Int8
from belvedere_serving.engines.heads import build_heads
from belvedere_serving.engines.runtime import Variant
from belvedere_serving.engines.targets import variants_of


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
            "chosen": self.config["chosen"],
            "candidates": self.config["candidates"],
            "curve": self.config["curve"],
            "methods": self.config["methods"],
            "retrieval": self.config["retrieval"],
        }


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
    described = resolve_as(ArtifactKind.MODEL, store, model)
    device, tools = device_for(target.device), toolchain(target.runtime)
    variants = variants_of(target, device)
    own_tag = engine_tag(described.digest, target.runtime, target.precision, tools, device)
    if (found := _find(store, own_tag, gate)) is not None:
        say(f"engine {own_tag} is there already: {found.digest}")
        return _tagged(store, found, tag)
    with tempfile.TemporaryDirectory(prefix="belvedere-engine-") as scratch, one_torch_thread():
        bench = prepare(store, described, Path(scratch), gate, device, say)
        engine, candidates = _fastest(bench, variants)
        small = engine.variant.precision == "int8"
        heads = build_heads(bench.folder, bench.inputs, say, Int8(gate=gate, device=this_device()) if small else None)
        config = {
            **engine.figures,
            "parity": {**engine.figures["parity"], **heads.parity},
            "curve": curve(bench, engine),
            "headPrograms": dict(heads.programs),
            "chosen": str(engine.variant),
            "candidates": candidates,
            "modelDigest": described.digest,
            "target": target.model_dump(by_alias=True),
            "toolchain": tools,
            "device": str(device),
            "parityGate": gate.model_dump(by_alias=True),
        }
        files = {**engine_files(bench, engine), **heads.files}
        descriptor = store.push(ArtifactKind.ENGINE, files, config=config, tag=own_tag)
    return _tagged(store, _result(store, descriptor, own_tag, gate, reused=False), tag)


def _fastest(bench: Bench, variants: tuple[Variant, ...]) -> tuple[Compiled, dict[str, Any]]:
    """Return the fastest engine that passes, or the nearest to its source when none does, and what all of them showed."""
    if len(variants) == 1:
        return compile_variant(bench, variants[0]), {}
    compiled: dict[Variant, Compiled] = {}
    shown: dict[str, CandidateReport] = {}
    for variant in variants:
        try:
            compiled[variant] = compile_variant(bench, variant)
        except BelvedereError as error:
            # One runtime that cannot read a model must not keep the others from serving it.
            bench.say(f"{variant}: {error}")
            shown[str(variant)] = CandidateReport(problem=str(error)[:500])
    if not compiled:
        raise InvalidInput(f"none of {', '.join(map(str, variants))} could be built: see the messages above")
    medians = {tower: _medians(bench, tower, compiled) for tower in TOWERS}
    for variant, engine in compiled.items():
        shown[str(variant)] = CandidateReport(
            p50_milliseconds={tower: round(medians[tower][variant], 4) for tower in TOWERS},
            passed=engine.passed_by(bench.gate),
        )
    near = [variant for variant, engine in compiled.items() if engine.passed_by(bench.gate)]
    best = (
        min(near, key=lambda variant: sum(medians[tower][variant] for tower in TOWERS))
        if near
        else max(compiled, key=lambda variant: min(one.parity.cosine_min for one in compiled[variant].towers.values()))
    )
    bench.say(f"chosen: {best}")
    return compiled[best], {name: report.model_dump(by_alias=True) for name, report in shown.items()}


def _medians(bench: Bench, tower: str, compiled: Mapping[Variant, Compiled]) -> dict[Variant, float]:
    """Return the time for one input of each engine, in alternating rounds."""
    names = {str(variant): variant for variant in compiled}
    runs = {name: one_by_one(bench, tower, compiled[variant].towers[tower].runtime) for name, variant in names.items()}
    repeats = measure.affordable_repeats(runs, rounds=5, repeats=10)
    taken = measure.milliseconds(runs, rounds=5, repeats=repeats)
    return {names[name]: float(np.median(values)) for name, values in taken.items()}


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
