"""Takes the spans that a server sends by OTLP, as JSON over HTTP."""

from __future__ import annotations

import contextlib
import http.server
import json
import queue
import threading
from collections.abc import Iterator
from typing import Any


class Collector:
    """Spans that came, in their order."""

    def __init__(self, port: int, spans: queue.Queue[dict[str, Any]]) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._spans = spans

    def until(self, name: str) -> list[dict[str, Any]]:
        """Return the spans that came up to the first of a name. Raises Empty when none comes within a minute."""
        found = [self._spans.get(timeout=60)]
        while found[-1]["name"] != name:
            found.append(self._spans.get(timeout=60))
        return found


@contextlib.contextmanager
def collecting() -> Iterator[Collector]:
    """Listen for the time of a with block."""
    spans: queue.Queue[dict[str, Any]] = queue.Queue()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told = json.loads(self.rfile.read(int(self.headers["content-length"])))
            for span in (one for of in told["resourceSpans"] for scope in of["scopeSpans"] for one in scope["spans"]):
                spans.put(span)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield Collector(server.server_port, spans)
        finally:
            server.shutdown()
            thread.join()
