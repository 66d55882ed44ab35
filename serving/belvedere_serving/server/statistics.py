"""What a model has done so far, in the terms of Triton's statistics extension. Triton's clients read it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from belvedere_serving.server.timing import Timing


@dataclass
class Tally:
    """A number of times and how long they took together."""

    count: int = 0
    ns: int = 0

    def add(self, seconds: float, times: int = 1) -> None:
        """Count something that took so long."""
        self.count += times
        self.ns += round(1e9 * seconds)

    def as_json(self) -> dict[str, int]:
        """Return the fields of StatisticDuration."""
        return {"count": self.count, "ns": self.ns}


@dataclass(kw_only=True)
class ModelStatistics:
    """The counters of one model. Inputs count one by one, so a request of three is three inferences."""

    wall_clock: Callable[[], float] = time.time
    success: Tally = field(default_factory=Tally)
    fail: Tally = field(default_factory=Tally)
    queue: Tally = field(default_factory=Tally)
    compute_input: Tally = field(default_factory=Tally)
    compute_infer: Tally = field(default_factory=Tally)
    compute_output: Tally = field(default_factory=Tally)
    batches: dict[int, Tally] = field(default_factory=dict)
    inferences: int = 0
    last_inference_ms: int = 0

    def succeeded(self, rows: int, seconds: float, timing: Timing) -> None:
        """Count an answered request."""
        self.inferences += rows
        self.last_inference_ms = round(1000 * self.wall_clock())
        self.success.add(seconds)
        self.queue.add(timing.queue_seconds)
        self.compute_input.add(timing.preprocess_seconds)
        self.compute_infer.add(timing.model_seconds)
        self.compute_output.add(timing.postprocess_seconds)

    def failed(self, seconds: float) -> None:
        """Count a request that got an error."""
        self.fail.add(seconds)

    def ran(self, rows: int, seconds: float) -> None:
        """Count a run of the engine."""
        self.batches.setdefault(rows, Tally()).add(seconds)

    def as_json(self, name: str, version: str) -> dict[str, Any]:
        """Return the fields of the message ModelStatistics."""
        stages = {
            "success": self.success,
            "fail": self.fail,
            "queue": self.queue,
            "compute_input": self.compute_input,
            "compute_infer": self.compute_infer,
            "compute_output": self.compute_output,
            "cache_hit": Tally(),
            "cache_miss": Tally(),
        }
        return {
            "name": name,
            "version": version,
            "last_inference": self.last_inference_ms,
            "inference_count": self.inferences,
            "execution_count": sum(tally.count for tally in self.batches.values()),
            "inference_stats": {stage: tally.as_json() for stage, tally in stages.items()},
            "batch_stats": [
                {"batch_size": rows, "compute_infer": tally.as_json()} for rows, tally in sorted(self.batches.items())
            ],
        }
