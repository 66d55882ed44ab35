"""Calls what is due when a test says that it is."""

from __future__ import annotations

from collections.abc import Callable


class Timer:
    """Stands for the event loop's clock, for one call at a time that is due after so many seconds."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.due: list[Callable[[], None]] = []

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        """Note what is to be called."""
        assert seconds == self.seconds
        self.due.append(call)

    def ring(self) -> None:
        """Call it."""
        (call,) = self.due
        self.due.clear()
        call()
