"""One served V2 model: request → preprocessing → batch → answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy.typing as npt

from belvedere_platform.protocol import (
    EMBEDDING,
    FINAL_RESPONSE,
    INPUT_OF,
    InferRequest,
    InferResponse,
    ModelMetadata,
    Tensor,
    invalid,
)
from belvedere_serving.server.batching import Batcher
from belvedere_serving.server.metrics import ServerMetrics
from belvedere_serving.server.statistics import ModelStatistics
from belvedere_serving.server.timing import Timing

Preprocess = Callable[[Sequence[bytes]], npt.NDArray[Any]]


def no_tokens(elements: Sequence[bytes]) -> int:
    """Return how many tokens pictures have."""
    return 0


class Model(Protocol):
    """A V2 model of this server."""

    @property
    def metadata(self) -> ModelMetadata: ...
    @property
    def version(self) -> str: ...
    @property
    def statistics(self) -> ModelStatistics: ...
    @property
    def name(self) -> str: ...
    @property
    def max_batch_size(self) -> int:
        """Return how many inputs are run together at most."""
        ...

    @property
    def decoupled(self) -> bool:
        """Whether one request may get several answers: only over a stream."""
        ...

    @property
    def running_since(self) -> float | None:
        """Return when the run that goes on began."""
        ...

    def retry_after(self, seconds_left: float, inside: int) -> int | None:
        """Return after how many seconds to come again, where one more request beside so many could not be answered in time.

        It is asked before the request is read, so it takes the least that one can ask for; None also where that says nothing.
        """
        ...

    async def infer(self, request: InferRequest, deadline: float, timing: Timing) -> InferResponse:
        """Return the one answer to a request. Raises V2Error."""
        ...

    def stream(self, request: InferRequest, deadline: float, timing: Timing) -> AsyncGenerator[InferResponse]:
        """Return the answers to a request as they come."""
        ...

    def num_tokens(self, elements: Sequence[bytes]) -> int:
        """Return how many tokens some inputs have."""
        ...

    def count(self, seconds: float, timing: Timing, rows: int | None) -> None:
        """Count a request that took so long; `rows` is None when it got an error."""
        ...

    async def close(self) -> None:
        """End what works for the model."""
        ...


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """A model that answers. `preparing`: runs the preprocessing that is too long for the event loop; None runs it there."""

    metadata: ModelMetadata
    version: str
    preprocess: Preprocess
    batcher: Batcher
    metrics: ServerMetrics
    max_rows: int
    statistics: ModelStatistics = field(default_factory=ModelStatistics)
    preparing: Executor | None = None
    num_tokens: Callable[[Sequence[bytes]], int] = no_tokens
    clock: Callable[[], float] = time.monotonic

    @property
    def name(self) -> str:
        """Return the V2 name."""
        return self.metadata.name

    @property
    def max_batch_size(self) -> int:
        """Return how many inputs are run together at most."""
        return self.batcher.max_rows

    @property
    def decoupled(self) -> bool:
        """Whether one request may get several answers."""
        return False

    @property
    def running_since(self) -> float | None:
        """Return when the run that goes on began."""
        return self.batcher.running_since

    def retry_after(self, seconds_left: float, inside: int) -> int | None:
        """Return after how many seconds to come again, where one more request beside so many could not be answered in time."""
        return self.batcher.retry_after(seconds_left, inside)

    async def close(self) -> None:
        """End the batcher."""
        await self.batcher.close()

    async def stream(self, request: InferRequest, deadline: float, timing: Timing) -> AsyncGenerator[InferResponse]:
        """Return the only answer."""
        yield replace(await self.infer(request, deadline, timing), parameters={FINAL_RESPONSE: True})

    async def infer(self, request: InferRequest, deadline: float, timing: Timing) -> InferResponse:
        """Return the embeddings of the request's inputs."""
        for output in request.outputs:
            if output.name != EMBEDDING:
                raise invalid(f"model '{self.name}' has no output '{output.name[:64]}'; it has '{EMBEDDING}'")
        elements: list[bytes] = request.input(INPUT_OF[self.name]).array.tolist()
        if not 1 <= len(elements) <= self.max_rows:
            raise invalid(f"{len(elements)} inputs sent; one request may have 1 to {self.max_rows}")
        with self.batcher.admitted(len(elements), deadline):
            started = self.clock()
            with self.batcher.coming(len(elements)):
                rows = await self._prepare(elements)
            timing.preprocess_seconds = self.clock() - started
            self.metrics.observe_seconds("preprocess", self.name, timing.preprocess_seconds)
            embeddings = await self.batcher.submit(rows, deadline, timing)
        return InferResponse(
            model_name=self.name,
            model_version=self.version,
            id=request.id,
            outputs=(Tensor(EMBEDDING, "FP32", embeddings),),
        )

    def count(self, seconds: float, timing: Timing, rows: int | None) -> None:
        """Count a request that took so long; `rows` is None when it got an error."""
        if rows is None:
            self.statistics.failed(seconds)
        else:
            self.statistics.succeeded(rows, seconds, timing)

    async def _prepare(self, elements: list[bytes]) -> npt.NDArray[Any]:
        if self.preparing is None:
            return self.preprocess(elements)
        rows, seconds = await asyncio.get_running_loop().run_in_executor(self.preparing, self._timed, elements)
        self.batcher.preparing.observe(len(elements), seconds)
        return rows

    def _timed(self, elements: list[bytes]) -> tuple[npt.NDArray[Any], float]:
        started = self.clock()
        return self.preprocess(elements), self.clock() - started
