"""What a server counts reaches its exporter added up, once an interval, and nothing of it twice."""

from __future__ import annotations

from belvedere_serving.server.metrics import EXPORT_SECONDS, AtIntervals, NoMetrics
from timer import Timer


class Reported(NoMetrics):
    """Remembers what was reported, in order."""

    def __init__(self) -> None:
        self.said: list[tuple[object, ...]] = []

    def count_request(self, model: str, protocol: str, code: str, number: int = 1) -> None:
        self.said.append(("request", model, protocol, code, number))

    def count_dropped(self, model: str, why: str, number: int = 1) -> None:
        self.said.append(("dropped", model, why, number))

    def set_queue_length(self, model: str, length: int) -> None:
        self.said.append(("length", model, length))

    def observe_seconds(self, stage: str, model: str, seconds: float) -> None:
        self.said.append(("seconds", stage, model, seconds))


def test_counts_are_reported_together_and_once() -> None:
    reported, timer = Reported(), Timer(EXPORT_SECONDS)
    metrics = AtIntervals(reported, later=timer.later)
    for length in (1, 2, 3, 2):
        metrics.set_queue_length("m", length)
        metrics.count_request("m", "http", "OK")
    metrics.count_request("m", "http", "RESOURCE_EXHAUSTED", 7)
    metrics.count_dropped("m", "busy", 7)
    assert reported.said == []
    timer.ring()
    assert reported.said == [
        ("request", "m", "http", "OK", 4),
        ("request", "m", "http", "RESOURCE_EXHAUSTED", 7),
        ("dropped", "m", "busy", 7),
        ("length", "m", 2),
    ]
    assert timer.due == []
    metrics.count_request("m", "grpc", "OK")
    timer.ring()
    assert reported.said[4:] == [("request", "m", "grpc", "OK", 1)]


def test_what_cannot_be_added_up_is_reported_at_once() -> None:
    reported, timer = Reported(), Timer(EXPORT_SECONDS)
    AtIntervals(reported, later=timer.later).observe_seconds("queue", "m", 0.25)
    assert reported.said == [("seconds", "queue", "m", 0.25)]
    assert timer.due == []
