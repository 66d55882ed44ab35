"""Groups requests into batches: a bounded queue, a short wait for company, and a failure that stays with its request."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import NoReturn

import numpy as np

from belvedere_platform.protocol import Reason, V2Error
from belvedere_serving.engines.lengths import groups, in_order
from belvedere_serving.server.admission import NEWEST, Forecast, Lag, Lane, Pace
from belvedere_serving.server.metrics import ServerMetrics
from belvedere_serving.server.statistics import ModelStatistics
from belvedere_serving.server.timing import Timing
from belvedere_serving.server.waiting import Array, BatchPolicy, Entry, EntryQueue, Sizing

Run = Callable[[Array], Awaitable[Array]]
WORTH = 0.25
"""What part of a run waiting must save, at least: what is known of how long runs take is no better than that."""
log = logging.getLogger(__name__)


def on_thread(call: Callable[[Array], Array], executor: Executor, lag: Lag) -> Run:
    """Return what runs a program in a worker thread; `lag` learns how long the loop then took to go on."""

    def timed(rows: Array) -> tuple[Array, float]:
        return call(rows), time.monotonic()

    async def run(rows: Array) -> Array:
        outputs, finished = await asyncio.get_running_loop().run_in_executor(executor, timed, rows)
        lag.observe(time.monotonic() - finished)
        return outputs

    return run


class Batcher:
    """Runs the inputs of many requests together. Lives in one event loop; `clock` is that loop's time."""

    def __init__(
        self,
        name: str,
        run: Run,
        policy: BatchPolicy,
        metrics: ServerMetrics,
        *,
        version: str = "",
        lane: Lane | None = None,
        statistics: ModelStatistics | None = None,
        sizing: Sizing | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`version`: named when an input fails; `lane`: what the engine runs on, models of one thread share it."""
        self._sizing = sizing
        self._full = sizing.full if sizing else 1
        self._max_cost = policy.max_rows * self._full
        self._cost_a_row = float(self._full)
        self._name = name
        self._version = version
        self._run_engine = run
        self._policy = policy
        self._metrics = metrics
        self._lane = lane or Lane()
        self._lane.queues.append(self)
        self._statistics = statistics or ModelStatistics()
        self._clock = clock
        self._entries = EntryQueue()
        self._batch = EntryQueue()
        self._arrived = asyncio.Event()
        self._admitted_rows = 0
        self._coming_rows = 0
        self.preparing = Pace()
        self.running = Pace()
        self._last_batch = 1
        self._worker: asyncio.Task[None] | None = None
        self.running_since: float | None = None

    @property
    def max_rows(self) -> int:
        """Return how many inputs of full length are run together at most."""
        return self._policy.max_rows

    def work(self, rows: int = 0) -> list[float]:
        """Return the seconds that each batch is expected to take, of what was let in and so many rows behind it."""
        most = self._max_cost
        known_rows = self._batch.rows + self._entries.rows
        # What one request makes of another's rows, pictures for a text say, waits without having been let in by itself.
        unknown = self._cost_of(max(self._admitted_rows - known_rows, 0) + rows)
        left = self._entries.cost + unknown
        # The last of several is taken for a full one: until its turn comes others will have filled it.
        batches = [self.running.expected(min(left, most))] * math.ceil(left / most)
        if self.running_since is not None:
            batches.insert(0, max(0.0, self.running.expected(self._batch.cost) - (self._clock() - self.running_since)))
        return batches

    def _cost_of(self, rows: int) -> int:
        """Return what rows are expected to cost whose length is not known yet: as much as others of late."""
        return math.ceil(rows * self._cost_a_row)

    def forecast(self, rows: int) -> Forecast:
        """Return when a request of so many rows would be answered."""
        return self._forecast(rows, alone=self._admitted_rows == 0)

    def _forecast(self, rows: int, *, alone: bool) -> Forecast:
        """Preparing goes on beside the engine's runs."""
        prepared = self.preparing.expected(1) * (self._coming_rows + rows) + self.running.expected(self._cost_of(rows))
        seconds = max(prepared, self._lane.expected_seconds(self, rows))
        return Forecast(seconds=seconds, lag_seconds=self._lane.lag.seconds, alone=alone)

    def retry_after(self, seconds_left: float, inside: int) -> int | None:
        """Return after how many seconds to come again, where a request would not be answered in time beside so many.

        Those of them that have not been let in yet are on their way here, and ahead.
        """
        ahead = max(inside, self._admitted_rows)
        if not ahead:
            return None
        if ahead >= self._policy.max_waiting_rows + self._policy.max_rows:
            return 1
        forecast = self._forecast(1 + ahead - self._admitted_rows, alone=False)
        return None if forecast.in_time(seconds_left) else forecast.retry_after_seconds(seconds_left)

    @contextmanager
    def admitted(self, rows: int, deadline: float = math.inf) -> Iterator[None]:
        """Reserve room for a request from before its preprocessing until it is answered.

        Raises RESOURCE_EXHAUSTED at once where there is no room, or where the answer would come after the deadline.
        """
        left = deadline - self._clock()
        if left <= 0:
            raise V2Error(Reason.DEADLINE_EXCEEDED, "the request's time was up when it arrived")
        if self._admitted_rows + rows > self._policy.max_waiting_rows + self._policy.max_rows:
            self._refuse("full", "its queue is full", 1)
        forecast = self.forecast(rows)
        if not forecast.in_time(left):
            why = f"the answer would take {forecast.seconds:.1f} s and there are {left:.1f} s"
            self._refuse("busy", why, forecast.retry_after_seconds(left))
        self._admitted_rows += rows
        self._metrics.set_queue_length(self._name, self._admitted_rows)
        try:
            yield
        finally:
            self._admitted_rows -= rows
            self._metrics.set_queue_length(self._name, self._admitted_rows)

    def _refuse(self, kind: str, why: str, retry_after_seconds: int) -> NoReturn:
        self._metrics.count_dropped(self._name, kind)
        message = f"model '{self._name}' has {self._admitted_rows} inputs waiting, {why}; try again later"
        raise V2Error(Reason.RESOURCE_EXHAUSTED, message, retry_after_seconds=retry_after_seconds)

    @contextmanager
    def coming(self, rows: int = 1) -> Iterator[None]:
        """Say that a request is being prepared, so that a batch may wait for it."""
        self._coming_rows += rows
        try:
            yield
        finally:
            self._coming_rows -= rows

    async def submit(self, array: Array, deadline: float, timing: Timing | None = None) -> Array:
        """Return the outputs for the rows of one request, in parts if there are more than fit a batch."""
        timing = timing or Timing()
        parts = []
        for places, rows in groups(array, self._sizing.lengths(array) if self._sizing else None):
            length = rows.shape[1] if self._sizing else 1
            step = self._max_cost // length
            for start in range(0, len(rows), step):
                answer = self._enqueue(rows[start : start + step], length, deadline, timing)
                parts.append((places[start : start + step], answer))
        try:
            async with asyncio.timeout(max(0.0, deadline - self._clock())):
                answers = [(places, await part) for places, part in parts]
        except TimeoutError as error:
            raise V2Error(Reason.DEADLINE_EXCEEDED, f"model '{self._name}' did not answer in time") from error
        finally:
            for _, part in parts:
                part.cancel()
        return in_order(answers)

    def _enqueue(self, array: Array, length: int, deadline: float, timing: Timing) -> asyncio.Future[Array]:
        loop = asyncio.get_running_loop()
        if self._worker is None or self._worker.done():
            self._worker = loop.create_task(self._work(), name=f"batcher {self._name}")
        entry = Entry(
            array=array,
            length=length,
            answer=loop.create_future(),
            deadline=deadline,
            since=self._clock(),
            timing=timing,
            rows=len(array),
            cost=len(array) * length,
        )
        self._cost_a_row += NEWEST * (length - self._cost_a_row)
        self._entries.append(entry)
        self._arrived.set()
        return entry.answer

    async def close(self) -> None:
        """Stop; what still waits or runs is answered with UNAVAILABLE."""
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.gather(self._worker, return_exceptions=True)
        for entry in (*self._batch, *self._entries):
            if not entry.answer.done():
                entry.answer.set_exception(V2Error(Reason.UNAVAILABLE, "the server is stopping"))
        self._entries.clear()

    async def _work(self) -> None:
        while True:
            while not self._entries:
                self._arrived.clear()
                await self._arrived.wait()
            await self._wait_for_company()
            async with self._lane.lock:
                self._take()
                if self._batch:
                    await self._run(list(self._batch))
                self._batch.clear()

    async def _wait_for_company(self) -> None:
        """Wait for more requests, but only where some are likely and one run with them saves more than the wait may cost.

        Those are likely that are being prepared, and as many as the last batch had: clients that ask one after the other come
        again when it has been answered. Where an engine takes as long for each input in any company, it runs what is there
        while the event loop reads the next ones.
        """
        end = self._clock() + self._policy.wait_seconds
        while (likely := max(self._coming_rows, self._last_batch - len(self._entries))) > 0:
            left = end - self._clock()
            if left <= 0 or self._entries.cost >= self._max_cost or not self._is_worth_waiting_for(likely):
                return
            self._arrived.clear()
            try:
                async with asyncio.timeout(left):
                    await self._arrived.wait()
            except TimeoutError:
                return

    def _is_worth_waiting_for(self, rows: int) -> bool:
        here = self._entries.cost
        more = min(self._cost_of(rows), self._max_cost - here)
        saved = self.running.saved(here, more)
        return saved is None or saved > max(self._policy.wait_seconds, WORTH * self.running.expected(here + more))

    def _take(self) -> None:
        """Take the next batch off the queue: the oldest, and what has its length. Who has gone or is too late is left out."""
        batch, kept, now = self._batch, list[Entry](), self._clock()
        length: int | None = None
        while self._entries and batch.cost < self._max_cost:
            entry = self._entries.take()
            if entry.answer.done():
                self._metrics.count_dropped(self._name, "gone")
            elif entry.deadline <= now:
                self._metrics.count_dropped(self._name, "late")
                entry.answer.set_exception(V2Error(Reason.DEADLINE_EXCEEDED, f"model '{self._name}' is too busy"))
            elif length not in (None, entry.length):
                kept.append(entry)
            elif batch.cost + entry.cost > self._max_cost:
                kept.append(entry)
                break
            else:
                length = entry.length
                batch.append(entry)
                self._metrics.observe_seconds("queue", self._name, now - entry.since)
        self._entries.put_back(kept)
        self._last_batch = len(batch)

    async def _run(self, batch: list[Entry]) -> None:
        """Run a batch. If it fails, its members run alone, so that only the one at fault gets the error."""
        self.running_since = started = self._clock()
        try:
            joined = batch[0].array if len(batch) == 1 else np.concatenate([entry.array for entry in batch])
            outputs = await self._run_engine(joined)
        except Exception as error:  # noqa: BLE001 - whatever an engine raises, its request gets an answer
            await self._recover(batch, error)
            return
        finally:
            self.running_since = None
            rows, seconds = sum(entry.rows for entry in batch), self._clock() - started
            self._metrics.observe_batch(self._name, rows)
            self.running.observe(sum(entry.cost for entry in batch), seconds)
            self._metrics.observe_seconds("model", self._name, seconds)
            self._statistics.ran(rows, seconds)
        offset, all_numbers = 0, _are_numbers(outputs)
        for entry in batch:
            entry.timing.add_run(queue_seconds=started - entry.since, model_seconds=seconds)
            own = outputs[offset : offset + entry.rows]
            self._answer(entry, own, are_numbers=all_numbers or _are_numbers(own))
            offset += entry.rows

    async def _recover(self, batch: list[Entry], error: Exception) -> None:
        if len(batch) > 1:
            for entry in batch:
                if not entry.answer.done():
                    await self._run([entry])
            return
        log.warning("engine failed", extra={"model": self._name, "error": str(error)[:512]})
        if not batch[0].answer.done():
            # During a rollout two versions answer at one address: whoever reads the error must know which one it was.
            whose = f" of {self._version}" if self._version else ""
            message = f"model '{self._name}'{whose} failed on this input: {str(error)[:256]}"
            batch[0].answer.set_exception(V2Error(Reason.INTERNAL, message))

    def _answer(self, entry: Entry, outputs: Array, *, are_numbers: bool) -> None:
        if entry.answer.done():
            return
        if are_numbers:
            entry.answer.set_result(outputs)
        else:
            message = f"model '{self._name}' computed a value that is not a number for this input"
            entry.answer.set_exception(V2Error(Reason.INTERNAL, message))


def _are_numbers(outputs: Array) -> bool:
    """Say whether there is no value among the outputs that is not a number, or infinite."""
    return math.isfinite(float(np.sum(outputs)))
