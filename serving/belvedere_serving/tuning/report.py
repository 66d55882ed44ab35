"""What a tuning leaves behind: the lines for a ModelService, and a picture of throughput against latency."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from belvedere_platform.errors import Unavailable
from belvedere_serving.engines.runtime import Variant
from belvedere_serving.tuning.search import Settings, Trial, front
from belvedere_serving.tuning.tune import Tuning


def service_fragment(chosen: Trial, variant: Variant, backend: str) -> str:
    """Return the part of a ModelService's spec that says what was found."""
    settings = chosen.settings
    # Instances of Triton share one replica; ours are replicas.
    replicas, cores = (
        (1, settings.threads * settings.instances) if backend == "triton" else (settings.instances, settings.threads)
    )
    spec = {
        "backend": backend,
        "engine": {"target": {"runtime": variant.runtime, "precision": variant.precision}},
        "batching": {
            "maxBatchSize": settings.max_batch_size,
            "waitMilliseconds": settings.batch_wait_milliseconds,
        },
        "scaling": {
            **({"minReplicas": replicas, "maxReplicas": replicas} if replicas > 1 else {}),
            "targetInFlight": max(1, math.ceil(chosen.clients / replicas)),
        },
        **({"server": {"instances": settings.instances}} if settings.instances > replicas else {}),
        "resources": {"cpu": cores},
    }
    text: str = yaml.safe_dump({"spec": spec}, sort_keys=False)
    return text


def _named(settings: Settings) -> str:
    return (
        f"batch {settings.max_batch_size}, wait {settings.batch_wait_milliseconds:g} ms, "
        f"{settings.instances} × {settings.threads} threads"
    )


def plot(tuning: Tuning, names: Mapping[str, str], path: Path) -> None:
    """Draw every trial, and the line of those that no other beats. `names`: what to call each engine."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise Unavailable("--plot needs matplotlib: pip install 'belvedere[report]'") from error
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for engine, name in names.items():
        mine = [trial for trial in tuning.trials if trial.settings.engine == engine]
        axes.scatter([one.latency_milliseconds for one in mine], [one.per_second for one in mine], s=14, label=name)
    best = front(tuning.trials)
    line: dict[str, Any] = {"color": "black", "linewidth": 1, "marker": "o", "markersize": 9, "markerfacecolor": "none"}
    axes.plot(
        [one.latency_milliseconds for one in best], [one.per_second for one in best], label="beaten by none", **line
    )
    if (chosen := tuning.chosen) is not None:
        axes.annotate(
            _named(chosen.settings),
            (chosen.latency_milliseconds, chosen.per_second),
            textcoords="offset points",
            xytext=(10, -4),
        )
    objective = tuning.objective
    axes.axvline(objective.milliseconds, color="grey", linestyle="--", linewidth=1)
    axes.set_xlabel(f"p{objective.percentile:g} latency, ms")
    axes.set_ylabel("answers a second")
    axes.set_xscale("log")
    axes.legend(frameon=False)
    figure.savefig(path)
