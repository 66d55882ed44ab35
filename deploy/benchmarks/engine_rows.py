"""Engines beside torch: ViT-S/16 at 224, and our own vision tower at the size that the quick start trains."""

from __future__ import annotations

import time
from collections.abc import Callable

from belvedere_platform.artifacts import ArtifactStore
from belvedere_platform.errors import BelvedereError
from belvedere_platform.protocol import EMBED_IMAGE
from belvedere_platform.resources.engine import EngineTarget, ParityGate
from belvedere_platform.telemetry.benchmark import Row, result
from belvedere_serving.engines.build import EngineResult, build
from belvedere_serving.engines.device import this_device
from belvedere_training.publish_untrained import untrained_model_artifact
from vision import Vision, push_model

GATE = ParityGate(cosine_minimum=0.999, top1_agreement_minimum=0.9)
PEER = "torch fp32, one thread"
Say = Callable[[str], None]


def engine_rows(store: ArtifactStore, say: Say) -> list[Row]:
    """Return the rows of both models. Those of ours have `own_` before their names."""
    transformer = push_model(store, size=224, vision=Vision(), name="vit-s")
    own = untrained_model_artifact(store, "models/own-nano").digest
    return [
        *_rows(store, transformer, "", "ViT-S/16 at 224", say),
        *_rows(store, own, "own_", "our convolutional tower of size nano at 64", say),
        *_litert_rows(store, own, "our convolutional tower of size nano at 64", say),
    ]


def _litert_rows(store: ArtifactStore, model: str, what: str, say: Say) -> list[Row]:
    """Return how fast our tower is in LiteRT here, where its converter is set up: `make litert`."""
    rows = []
    for precision in ("fp32", "int8"):
        name = f"own_litert_{precision}_speedup"
        try:
            engine = build(
                store, model, EngineTarget.model_validate({"runtime": "litert", "precision": precision}), GATE, say=say
            )
        except BelvedereError as error:
            rows.append(result(name, None, "x", "higher", None, note=str(error)[:300]))
            continue
        parity = engine.config["parity"][EMBED_IMAGE]
        passed = "passed parity" if engine.passed else f"failed parity, top-1 agreement {parity['top1Agreement']:.3f}"
        near = f"{passed}, cosine min {parity['cosineMin']:.5f}, mean {parity['cosineMean']:.5f}; {what}, one picture, one thread"
        rows.append(_speedup(name, engine, None, near))
    return rows


def _rows(store: ArtifactStore, model: str, prefix: str, what: str, say: Say) -> list[Row]:
    """Return the rows of one model."""
    chosen = build(store, model, EngineTarget(runtime="auto", precision="auto"), GATE, say=say)
    fp32 = build(store, model, EngineTarget(), GATE, say=say)
    int8 = build(store, model, EngineTarget(precision="int8"), GATE, say=say)
    started = time.perf_counter()
    again = build(store, model, EngineTarget(precision="int8"), GATE)
    reused_seconds = time.perf_counter() - started
    assert again.reused
    target = 2.5 if this_device().has_vnni else 1.4
    note = f"{what}, untrained, one picture, one thread; parity gate: cosine >= {GATE.cosine_minimum:g}"
    name, parity = str(chosen.config["chosen"]), int8.config["parity"][EMBED_IMAGE]
    seen = f"mean over {parity['samples']} pictures, smallest {parity['cosineMin']:.5f}; {what}"
    return [
        _speedup(f"{prefix}best_engine_speedup", chosen, target, f"{name}; {note}"),
        result(f"{prefix}best_engine_name", None, "name", "higher", None, note=name, name_value=name),
        _speedup(f"{prefix}vision_int8_speedup", int8, target, f"ONNX Runtime int8, {_method(int8)}; {note}"),
        result(f"{prefix}vision_int8_cosine", parity["cosineMean"], "cosine", "higher", 0.999, note=seen),
        _bytes_ratio(f"{prefix}int8_bytes_ratio", store, int8, fp32),
        result(
            f"{prefix}engine_build_reused_seconds",
            reused_seconds,
            "s",
            "lower",
            None,
            note="a build whose engine is there",
        ),
        *_candidates(chosen, prefix),
    ]


def _speedup(name: str, engine: EngineResult, target: float | None, note: str) -> Row:
    latency = engine.config["latency"][EMBED_IMAGE]
    own, other = latency["p50Milliseconds"], latency["torchP50Milliseconds"]
    return result(
        name, other / own, "x", "higher", target, peer=PEER, peer_value=other, own_value=own, rounds=7, note=note
    )


def _bytes_ratio(name: str, store: ArtifactStore, int8: EngineResult, fp32: EngineResult) -> Row:
    small, large = _bytes(store, int8), _bytes(store, fp32)
    return result(
        name,
        small / large,
        "share",
        "lower",
        0.27,
        own_value=small,
        peer_value=large,
        peer="fp32",
        note="embed_image.onnx",
    )


def _method(engine: EngineResult) -> str:
    methods = engine.config["methods"][EMBED_IMAGE]
    return next(str(name) for name, shown in methods.items() if shown["chosen"])


def _bytes(store: ArtifactStore, engine: EngineResult) -> int:
    return next(entry.size for entry in store.resolve(engine.digest).files if entry.name == "embed_image.onnx")


def _candidates(chosen: EngineResult, prefix: str) -> list[Row]:
    rows = []
    for name, report in sorted(chosen.config["candidates"].items()):
        value = report["p50Milliseconds"].get(EMBED_IMAGE)
        note = report["problem"] or ("passed parity" if report["passed"] else "failed parity")
        rows.append(result(f"{prefix}vision_p50_{name.replace(' ', '_')}", value, "ms", "lower", None, note=note))
    return rows
