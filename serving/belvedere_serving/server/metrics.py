"""What a model server counts and times. Names and labels are part of the public surface."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Protocol

from belvedere_serving.server.later import Later, on_the_loop

STAGES = ("preprocess", "queue", "model", "postprocess")
_LABELS = ("namespace", "service", "version", "model")
_SECONDS = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0]
EXPORT_SECONDS = 1.0
"""How often what was counted is handed on. Ray's exporter looks less often than that."""
_SIZES = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]


class ServerMetrics(Protocol):
    """Where a server reports to."""

    def count_request(self, model: str, protocol: str, code: str, number: int = 1) -> None:
        """Count answered requests; `code` is OK or the reason of its error."""
        ...

    def count_dropped(self, model: str, why: str, number: int = 1) -> None:
        """Count requests that left the queue without being run."""
        ...

    def set_queue_length(self, model: str, length: int) -> None:
        """Report how many inputs wait."""
        ...

    def observe_batch(self, model: str, size: int) -> None:
        """Report the size of a batch."""
        ...

    def observe_seconds(self, stage: str, model: str, seconds: float) -> None:
        """Report how long a stage took."""
        ...


class NoMetrics:
    """Reports to nobody."""

    def count_request(self, model: str, protocol: str, code: str, number: int = 1) -> None:
        """Do nothing."""

    def count_dropped(self, model: str, why: str, number: int = 1) -> None:
        """Do nothing."""

    def set_queue_length(self, model: str, length: int) -> None:
        """Do nothing."""

    def observe_batch(self, model: str, size: int) -> None:
        """Do nothing."""

    def observe_seconds(self, stage: str, model: str, seconds: float) -> None:
        """Do nothing."""


class AtIntervals:
    """Adds up what is counted and reports it to another once in a while, lengths as they are then.

    To Ray, one count more takes as long as half a refusal, and a length that changes with each request takes two of them a request.
    """

    def __init__(self, to: ServerMetrics, *, later: Later = on_the_loop) -> None:
        self._to = to
        self._later = later
        self._is_due = False
        self._requests: Counter[tuple[str, str, str]] = Counter()
        self._dropped: Counter[tuple[str, str]] = Counter()
        self._lengths: dict[str, int] = {}

    def count_request(self, model: str, protocol: str, code: str, number: int = 1) -> None:
        """Add to the answered requests."""
        self._requests[model, protocol, code] += number
        self._due()

    def count_dropped(self, model: str, why: str, number: int = 1) -> None:
        """Add to the requests that left the queue without being run."""
        self._dropped[model, why] += number
        self._due()

    def set_queue_length(self, model: str, length: int) -> None:
        """Note how many inputs wait."""
        self._lengths[model] = length
        self._due()

    def observe_batch(self, model: str, size: int) -> None:
        """Report the size of a batch at once: sizes cannot be added up."""
        self._to.observe_batch(model, size)

    def observe_seconds(self, stage: str, model: str, seconds: float) -> None:
        """Report how long a stage took at once."""
        self._to.observe_seconds(stage, model, seconds)

    def _due(self) -> None:
        if not self._is_due:
            self._is_due = True
            self._later(EXPORT_SECONDS, self._report)

    def _report(self) -> None:
        self._is_due = False
        for (model, protocol, code), number in self._requests.items():
            self._to.count_request(model, protocol, code, number)
        for (model, why), number in self._dropped.items():
            self._to.count_dropped(model, why, number)
        for model, length in self._lengths.items():
            self._to.set_queue_length(model, length)
        self._requests.clear()
        self._dropped.clear()
        self._lengths.clear()


class RayMetrics:
    """Reports through Ray's exporter, which puts `ray_` before each name."""

    def __init__(self, labels: Mapping[str, str]) -> None:
        """`labels`: namespace, service and version of this server."""
        from ray.util.metrics import Counter, Gauge, Histogram

        def made(kind: Any, name: str, description: str, *more: str, **options: Any) -> Any:
            metric = kind(f"belvedere_server_{name}", description, tag_keys=(*_LABELS, *more), **options)
            metric.set_default_tags(dict(labels))
            return metric

        self._requests = made(Counter, "requests_total", "Answered requests.", "protocol", "code")
        self._errors = made(Counter, "errors_total", "Requests answered with an error.", "protocol", "code")
        self._dropped = made(Counter, "dropped_total", "Requests that left the queue without being run.", "why")
        self._queue = made(Gauge, "queue_length", "Inputs that wait for the engine.")
        self._batch = made(Histogram, "batch_size", "Inputs a run of the engine.", boundaries=_SIZES)
        self._seconds = {
            stage: made(Histogram, f"{stage}_seconds", f"Time in the stage: {stage}.", boundaries=_SECONDS)
            for stage in STAGES
        }

    def count_request(self, model: str, protocol: str, code: str, number: int = 1) -> None:
        """Count answered requests."""
        tags = {"model": model, "protocol": protocol, "code": code}
        self._requests.inc(number, tags)
        if code != "OK":
            self._errors.inc(number, tags)

    def count_dropped(self, model: str, why: str, number: int = 1) -> None:
        """Count requests that left the queue without being run."""
        self._dropped.inc(number, {"model": model, "why": why})

    def set_queue_length(self, model: str, length: int) -> None:
        """Report how many inputs wait."""
        self._queue.set(length, {"model": model})

    def observe_batch(self, model: str, size: int) -> None:
        """Report the size of a batch."""
        self._batch.observe(size, {"model": model})

    def observe_seconds(self, stage: str, model: str, seconds: float) -> None:
        """Report how long a stage took."""
        # Ray refuses an observation of exactly zero, which a coarse clock can give.
        self._seconds[stage].observe(max(seconds, 1e-9), {"model": model})
