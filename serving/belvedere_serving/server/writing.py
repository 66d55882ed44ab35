"""Texts of many requests, written together: one loop steps the generator, each request gets its words as they come."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Executor

import numpy as np

from belvedere_platform.protocol import Reason, V2Error
from belvedere_serving.generation.generator import Generator, Word, Writing
from belvedere_serving.generation.scheduler import Plan
from belvedere_serving.server.metrics import ServerMetrics

MODEL = "generation"
log = logging.getLogger(__name__)


class Writer:
    """Lives in one event loop; only the computing of a step is done by the engine's thread, with its lane held."""

    def __init__(
        self,
        generator: Generator,
        metrics: ServerMetrics,
        *,
        executor: Executor,
        lane: asyncio.Lock,
        max_texts: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`max_texts`: how many may be written or wait for it."""
        self._generator = generator
        self._metrics = metrics
        self._executor = executor
        self._lane = lane
        self._max_texts = max_texts
        self._clock = clock
        self._streams: dict[Writing, asyncio.Queue[Word | V2Error]] = {}
        self._left: list[Writing] = []
        self._wake = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None
        self.running_since: float | None = None

    @property
    def num_free_blocks(self) -> int:
        """Return how many blocks of the cache nobody has."""
        return self._generator.scheduler.pool.num_free

    @property
    def max_running(self) -> int:
        """Return how many texts are written at once at most."""
        return self._generator.options.max_running

    def room(self, num_prompt: int) -> int:
        """Return how many words can follow a prompt."""
        return self._generator.room(num_prompt)

    async def words(self, writing: Writing, deadline: float) -> AsyncGenerator[Word]:
        """Return the words of a text as they are written. Whoever stops listening stops the text, and its blocks are freed."""
        if len(self._streams) >= self._max_texts:
            self._metrics.count_dropped(MODEL, "full")
            message = f"{len(self._streams)} texts are being written or wait for it; try again later"
            raise V2Error(Reason.RESOURCE_EXHAUSTED, message, retry_after_seconds=1)
        queue = self._streams[writing] = asyncio.Queue()
        self._generator.add(writing)
        self._awake()
        try:
            while writing.finish is None or not queue.empty():
                async with asyncio.timeout(max(0.0, deadline - self._clock())):
                    word = await queue.get()
                if isinstance(word, V2Error):
                    raise word
                yield word
        except TimeoutError as error:
            self._metrics.count_dropped(MODEL, "late")
            raise V2Error(Reason.DEADLINE_EXCEEDED, "the text was not finished in time") from error
        finally:
            del self._streams[writing]
            # The step that goes on now still uses the text's blocks: they are freed before the next one.
            self._left.append(writing)
            self._awake()

    def _awake(self) -> None:
        self._wake.set()
        if self._worker is None or self._worker.done():
            self._worker = asyncio.get_running_loop().create_task(self._work(), name="writer")

    async def _work(self) -> None:
        while True:
            self._wake.clear()
            while self._left:
                self._generator.cancel(self._left.pop())
            self._metrics.set_queue_length(MODEL, len(self._streams))
            if self._generator.busy:
                await self._step()
            else:
                await self._wake.wait()

    async def _step(self) -> None:
        async with self._lane:
            plan = self._generator.scheduler.plan()
            self.running_since = started = self._clock()
            try:
                loop = asyncio.get_running_loop()
                logits = await loop.run_in_executor(self._executor, self._generator.compute, plan)
            except Exception as error:  # noqa: BLE001 - whatever an engine raises, its texts get an answer
                self._fail(plan, error)
                return
            finally:
                self.running_since = None
                self._metrics.observe_batch(MODEL, len(plan.begin) + len(plan.go_on))
                self._metrics.observe_seconds("model", MODEL, self._clock() - started)
        broken = [writing for writing, values in logits.items() if np.isnan(values).any()]
        for writing in broken:
            self._tell(
                writing, V2Error(Reason.INTERNAL, "the model computed a value that is not a number for this input")
            )
        for word in self._generator.take(plan, logits):
            if word.writing not in broken:
                self._tell(word.writing, word)

    def _fail(self, plan: Plan[Writing], error: Exception) -> None:
        log.warning("decoder failed", extra={"model": MODEL, "error": str(error)[:512]})
        for writing in (*plan.begin, *plan.go_on):
            self._generator.cancel(writing)
            self._tell(writing, V2Error(Reason.INTERNAL, f"the decoder failed: {str(error)[:256]}"))

    def _tell(self, writing: Writing, word: Word | V2Error) -> None:
        if writing in self._streams:
            self._streams[writing].put_nowait(word)

    async def close(self) -> None:
        """Stop; texts that are not finished are answered with UNAVAILABLE."""
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.gather(self._worker, return_exceptions=True)
        for writing in list(self._streams):
            self._tell(writing, V2Error(Reason.UNAVAILABLE, "the server is stopping"))
