"""Calls something later: what waits for a while gets this passed in, and a test its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

Later = Callable[[float, Callable[[], None]], object]


def on_the_loop(seconds: float, call: Callable[[], None]) -> object:
    """Call once, so many seconds from now, in the event loop that is running."""
    return asyncio.get_running_loop().call_later(seconds, call)
