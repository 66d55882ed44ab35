"""Which key is reconciled next: each key is queued once, handled by one worker at a time, and backs off alone."""

from __future__ import annotations

import asyncio
import zlib
from collections import deque
from typing import NamedTuple

from belvedere_operators.runtime.clock import Clock


class Key(NamedTuple):
    """The namespace and name of one object of the kind that a controller owns."""

    namespace: str
    name: str

    def __str__(self) -> str:
        """Return `namespace/name`."""
        return f"{self.namespace}/{self.name}"

    @property
    def turn(self) -> float:
        """When in a round it is this key's turn: from 0 to 1, the same each time, spread evenly over many keys."""
        return zlib.crc32(str(self).encode()) / 2**32


class WorkQueue:
    """The semantics of client-go's rate-limited queue, for one event loop.

    A key added while queued stays queued once; a key added while it is being handled is queued again when that ends.
    """

    def __init__(self, clock: Clock, *, base_seconds: float = 0.05, cap_seconds: float = 300.0) -> None:
        self._clock = clock
        self._base_seconds = base_seconds
        self._cap_seconds = cap_seconds
        self._order: deque[Key] = deque()
        self._dirty: set[Key] = set()
        self._busy: set[Key] = set()
        self._failures: dict[Key, int] = {}
        self._timers: dict[Key, tuple[float, asyncio.Task[None]]] = {}
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._closed = False

    def __len__(self) -> int:
        """Return how many keys wait."""
        return len(self._order)

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing is being handled; delayed keys do not count."""
        return not self._order and not self._busy

    def add(self, key: Key) -> None:
        """Queue the key, unless it is queued already."""
        if self._closed or key in self._dirty:
            return
        self._dirty.add(key)
        if key not in self._busy:
            self._put(key)

    def add_after(self, key: Key, seconds: float) -> None:
        """Queue the key in so many seconds. Of several times for one key the earliest counts."""
        if self._closed:
            return
        if seconds <= 0:
            self.add(key)
            return
        due = self._clock.monotonic() + seconds
        waiting = self._timers.get(key)
        if waiting is not None:
            if waiting[0] <= due:
                return
            waiting[1].cancel()
        self._timers[key] = (due, asyncio.get_running_loop().create_task(self._add_later(key, seconds)))

    def retry(self, key: Key) -> float:
        """Queue the key again after its own exponential backoff, and return that delay in seconds."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        # The exponent is bounded because 2.0 ** 1100 is an OverflowError, not infinity.
        delay = min(self._cap_seconds, self._base_seconds * 2.0 ** min(failures, 64))
        self.add_after(key, delay)
        return delay

    def forget(self, key: Key) -> None:
        """End the backoff of a key that was handled without error."""
        self._failures.pop(key, None)

    async def get(self) -> Key | None:
        """Return the next key and mark it as being handled; None when the queue is closed."""
        while not self._order and not self._closed:
            await self._wait()
        if self._closed:
            return None
        key = self._order.popleft()
        self._dirty.discard(key)
        self._busy.add(key)
        return key

    def done(self, key: Key) -> None:
        """Say that handling the key has ended; if it was added meanwhile, it is queued again."""
        self._busy.discard(key)
        if key in self._dirty and not self._closed:
            self._put(key)

    def close(self) -> None:
        """End every waiting `get` and drop what is delayed."""
        self._closed = True
        for _, task in self._timers.values():
            task.cancel()
        self._timers.clear()
        while self._waiters:
            self._wake_one()

    async def _add_later(self, key: Key, seconds: float) -> None:
        await self._clock.sleep(seconds)
        self._timers.pop(key, None)
        self.add(key)

    def _put(self, key: Key) -> None:
        self._order.append(key)
        self._wake_one()

    async def _wait(self) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            # A worker that is cancelled after it was woken passes the wake-up on, or a key would wait unseen.
            if waiter.done() and not waiter.cancelled() and self._order:
                self._wake_one()
            raise

    def _wake_one(self) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
