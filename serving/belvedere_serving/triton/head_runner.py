"""Runs one head for Triton: the model of the Ray Serve server, in an event loop on a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from belvedere_platform.errors import CorruptData
from belvedere_platform.protocol import InferRequest, InferResponse, Reason, V2Error
from belvedere_serving.engines.preprocess import ImagePreprocessor, Recipe, TextPreprocessor
from belvedere_serving.generation.decoder import HeadPrograms, onnx_heads
from belvedere_serving.server.admission import Lane
from belvedere_serving.server.config import ModelOptions
from belvedere_serving.server.head_models import EnginePlace, head_models, warm_up_heads
from belvedere_serving.server.metrics import NoMetrics
from belvedere_serving.server.models import Model
from belvedere_serving.server.timing import Timing

WHOLE = "whole"
"""Parameter of a request for a text in one answer."""
CLOSE_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class Part:
    """What is sent of an answer: a response, an error, or nothing but that it is over."""

    outcome: InferResponse | V2Error | None
    final: bool


def load_head(folder: Path, name: str, options: ModelOptions) -> HeadRunner:
    """Return what runs a head whose files are in a folder, warmed up."""
    programs = onnx_heads(folder, threads=options.threads)
    if programs is None:
        raise CorruptData(f"{folder} has no heads; write the repository again")
    recipe = Recipe.read(folder / "preprocess.json")
    text = TextPreprocessor((folder / "tokenizer.json").read_text(encoding="utf-8"), recipe.text)
    return HeadRunner(programs, text, ImagePreprocessor(recipe.image), name, options)


class HeadRunner:
    """Answers from any thread. A text that many ask for at once is written together with the others."""

    def __init__(
        self, programs: HeadPrograms, text: TextPreprocessor, image: ImagePreprocessor, name: str, options: ModelOptions
    ) -> None:
        warm_up_heads(programs, image, text)
        self._options = options
        self._executors = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"head {name}", daemon=True)
        self._thread.start()
        working, preparing = self._executors
        place = EnginePlace(executor=working, preparing=preparing, lane=Lane(), policy=options.batch_policy)

        async def made() -> list[Model]:
            return head_models(programs, text, image, options, NoMetrics(), place)

        self._models = {model.name: model for model in asyncio.run_coroutine_threadsafe(made(), self._loop).result()}
        self._model = self._models[name]

    def infer(self, request: InferRequest, timeout_seconds: float | None = None) -> InferResponse:
        """Return the one answer to a request. Raises V2Error and nothing else."""
        answer = self._model_answer(request, self._deadline(timeout_seconds))
        return asyncio.run_coroutine_threadsafe(answer, self._loop).result()

    def stream(
        self,
        request: InferRequest,
        send: Callable[[Part], None],
        gone: Callable[[], bool],
        timeout_seconds: float | None = None,
    ) -> Future[None]:
        """Send the parts of an answer as they come, the last of them as such, until the client has gone."""
        coming = self._stream(request, send, gone, self._deadline(timeout_seconds))
        return asyncio.run_coroutine_threadsafe(coming, self._loop)

    async def _stream(
        self, request: InferRequest, send: Callable[[Part], None], gone: Callable[[], bool], deadline: float
    ) -> None:
        if request.parameters.get(WHOLE) is True:
            try:
                send(Part(outcome=await self._model_answer(request, deadline), final=True))
            except V2Error as error:
                send(Part(outcome=error, final=True))
            return
        ended = False
        try:
            async with contextlib.aclosing(self._model.stream(request, deadline, Timing())) as answers:
                async for answer in answers:
                    if gone():
                        break
                    ended = answer.final
                    send(Part(outcome=answer, final=ended))
        except V2Error as error:
            send(Part(outcome=error, final=True))
        except Exception as error:  # noqa: BLE001 - whatever a head raises, its request gets an answer
            send(Part(outcome=_failed(error), final=True))
        else:
            if not ended:
                send(Part(outcome=None, final=True))

    async def _model_answer(self, request: InferRequest, deadline: float) -> InferResponse:
        try:
            return await self._model.infer(request, deadline, Timing())
        except V2Error:
            raise
        except Exception as error:
            raise _failed(error) from error

    def _deadline(self, timeout_seconds: float | None) -> float:
        longest = self._options.request_timeout_seconds
        return time.monotonic() + min(longest, timeout_seconds or longest)

    def close(self) -> None:
        """Answer what goes on with UNAVAILABLE, and end the thread."""

        async def closed() -> None:
            for model in self._models.values():
                await model.close()

        asyncio.run_coroutine_threadsafe(closed(), self._loop).result(CLOSE_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CLOSE_SECONDS)
        self._loop.close()
        for executor in self._executors:
            executor.shutdown(wait=False, cancel_futures=True)


def _failed(error: Exception) -> V2Error:
    return V2Error(Reason.INTERNAL, f"the head failed: {str(error)[:256]}")
