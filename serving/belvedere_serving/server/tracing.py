"""Spans of requests: one each with its stages below, in the trace that the client began (W3C Trace Context)."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from opentelemetry import trace
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from belvedere_serving.server.timing import Timing

FILE_VARIABLE = "BELVEDERE_TRACES"
CARRIED = ("traceparent", "tracestate")
"""The headers of W3C Trace Context."""


class Tracing:
    """Writes the spans of a server; without a provider that records it costs one comparison a request."""

    def __init__(self, provider: Any = None) -> None:
        """`provider`: of OpenTelemetry's SDK; None makes none."""
        self._provider = provider
        self._tracer = None if provider is None else trace.get_tracer("belvedere.server", tracer_provider=provider)
        self._propagator = TraceContextTextMapPropagator()

    def record(
        self, name: str, carrier: Mapping[str, str], seconds: float, timing: Timing, *, code: str, version: str
    ) -> None:
        """Write the spans of a request that has just been answered after so many seconds."""
        if self._tracer is None:
            return
        end = time.time_ns()
        at = end - round(1e9 * seconds)
        span = self._tracer.start_span(
            f"infer {name}",
            context=self._propagator.extract(dict(carrier)),
            kind=SpanKind.SERVER,
            start_time=at,
            attributes={"belvedere.model": name, "belvedere.version": version, "belvedere.code": code},
        )
        below = trace.set_span_in_context(span)
        for stage, taken in timing.stages().items():
            child = self._tracer.start_span(stage, context=below, start_time=at)
            at += round(1e9 * taken)
            child.end(at)
        if code != "OK":
            span.set_status(Status(StatusCode.ERROR, code))
        span.end(end)

    def close(self) -> None:
        """Write what is still kept back."""
        if self._provider is not None:
            self._provider.shutdown()


def tracing_of(environment: Mapping[str, str] = os.environ, *, resource: Mapping[str, str]) -> Tracing:
    """Return the tracing that the environment asks for: to a file (BELVEDERE_TRACES), to OTLP (OTEL_EXPORTER_OTLP_ENDPOINT), or none."""
    exporters = []
    if path := environment.get(FILE_VARIABLE):
        exporters.append(_JsonLines(Path(path)))
    if environment.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
        # Installed by whoever wants it: pip install opentelemetry-exporter-otlp-proto-http
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        exporters.append(OTLPSpanExporter())
    if not exporters:
        return Tracing()
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(resource=Resource.create({"service.name": "belvedere-server", **resource}))
    for exporter in exporters:
        provider.add_span_processor(BatchSpanProcessor(exporter))
    return Tracing(provider)


class _JsonLines:
    """Writes a line of JSON a span: an exporter of OpenTelemetry's SDK by its shape."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()

    def export(self, spans: Sequence[Any]) -> Any:
        """Append the spans."""
        from opentelemetry.sdk.trace.export import SpanExportResult

        lines = "".join(json.dumps(json.loads(span.to_json()), separators=(",", ":")) + "\n" for span in spans)
        with self._lock, self._path.open("a", encoding="utf-8") as file:
            file.write(lines)
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Nothing is kept open."""

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Nothing is kept back."""
        return True
