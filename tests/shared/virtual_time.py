"""An event loop whose clock jumps to the next thing that is due: minutes of load are played in milliseconds, always alike."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

Result = TypeVar("Result")


class _Jumping(selectors.DefaultSelector):
    """Does not wait: moves the clock on by as much as the loop would have waited."""

    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        self.now += max(0.0, timeout or 0.0)
        return super().select(0)


class _VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


def play(story: Callable[[Callable[[], float]], Awaitable[Result]]) -> Result:
    """Return what a story comes to; it is given its clock."""
    loop = _VirtualLoop()
    try:
        return loop.run_until_complete(story(loop.time))
    finally:
        loop.close()
