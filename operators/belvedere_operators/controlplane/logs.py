"""Where the control plane's log goes: JSON lines, into a file that is turned over or to standard error."""

from __future__ import annotations

import logging
import logging.handlers
from pathlib import Path

from belvedere_platform.telemetry.logging import JsonFormatter

QUIET = ("httpx", "httpcore", "asyncio", "aiohttp.access")


def log_to(path: Path | None, *, verbose: bool) -> None:
    """Send all logs to a file that is turned over at 16 MiB, or to standard error."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler: logging.Handler = logging.handlers.RotatingFileHandler(
            path, maxBytes=2**24, backupCount=2, encoding="utf-8"
        )
    else:
        handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.DEBUG if verbose else logging.INFO)
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
