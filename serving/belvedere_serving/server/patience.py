"""Decides when the threads of a server may interrupt each other: not while it refuses.

By the kernel's default, a thread that wakes takes the core from one that has run for a while. Each request that comes under overload
then interrupts the engine, only to be refused, and has a turn of the event loop for itself: as much again as the refusal costs. Of threads
that run as a batch none interrupts another: it waits until that one waits, or until its slice of time is over (some three milliseconds),
and then refuses all that came meanwhile. Where no other thread wants the core, nobody waits for anything.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable

from belvedere_serving.server.later import Later, on_the_loop

QUIET_SECONDS = 1.0
"""After how long without a refusal threads interrupt each other again: beside other programs, patience costs time."""


class Patience:
    """Makes the threads of this process wait for each other as long as requests are refused. Lives in one event loop."""

    def __init__(self, *, wait: Callable[[bool], None] | None = None, later: Later = on_the_loop) -> None:
        """`wait`: makes threads wait for each other, or no longer."""
        self._wait = wait or threads_wait
        self._later = later
        self._waiting = False
        self._refused = False

    def refused(self) -> None:
        """Take note of a refusal."""
        self._refused = True
        if not self._waiting:
            self._waiting = True
            self._wait(True)
            self._later(QUIET_SECONDS, self._look)

    def close(self) -> None:
        """Let threads interrupt each other again."""
        if self._waiting:
            self._waiting = False
            self._wait(False)

    def _look(self) -> None:
        if self._refused and self._waiting:
            self._refused = False
            self._later(QUIET_SECONDS, self._look)
        else:
            self.close()


def threads_wait(wait: bool) -> None:
    """Let all threads of this process wait for each other, or no longer. Those that somebody gave another priority keep it."""
    if sys.platform != "linux":
        return
    before, after = (os.SCHED_OTHER, os.SCHED_BATCH) if wait else (os.SCHED_BATCH, os.SCHED_OTHER)
    for thread in map(int, os.listdir("/proc/self/task")):
        # One that has ended meanwhile; or all, where a sandbox forbids it: then they interrupt each other as before.
        with contextlib.suppress(OSError):
            if os.sched_getscheduler(thread) == before:
                os.sched_setscheduler(thread, after, os.sched_param(0))
