"""The V2 models of heads that see both modalities: match, caption and answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from belvedere_platform.protocol import (
    ANSWER,
    ATTRIBUTION,
    BYTES,
    CAPTION,
    EXPLAIN,
    FINAL_RESPONSE,
    IMAGE,
    MATCH,
    SCORE,
    TEXT,
    InferRequest,
    InferResponse,
    ModelMetadata,
    Tensor,
    TensorMetadata,
    invalid,
)
from belvedere_serving.engines.preprocess import TextPreprocessor
from belvedere_serving.generation.decoder import Geometry
from belvedere_serving.generation.generator import Finish, Writing
from belvedere_serving.generation.sampling import Sampling
from belvedere_serving.generation.wording import Wording
from belvedere_serving.server.batching import Batcher
from belvedere_serving.server.features import PictureReader, in_time
from belvedere_serving.server.models import no_tokens
from belvedere_serving.server.statistics import ModelStatistics
from belvedere_serving.server.timing import Timing
from belvedere_serving.server.writing import Writer

Array = npt.NDArray[Any]
FINISH_REASON, NUM_PROMPT, NUM_WRITTEN = "finish_reason", "prompt_tokens", "completion_tokens"
"""Parameters of the last answer: why it is the last, and the tokens of question and text."""
INPUTS_OF = {MATCH: (IMAGE, TEXT), CAPTION: (IMAGE,), ANSWER: (IMAGE, TEXT), EXPLAIN: (IMAGE, TEXT)}
GRID = 8
"""Blocks along each edge of a picture that is explained."""
_TEXTS = TensorMetadata(name=TEXT, datatype=BYTES, shape=(-1,))
OUTPUT_OF = {
    MATCH: TensorMetadata(name=SCORE, datatype="FP32", shape=(-1,)),
    CAPTION: _TEXTS,
    ANSWER: _TEXTS,
    EXPLAIN: TensorMetadata(name=ATTRIBUTION, datatype="FP32", shape=(-1, GRID, GRID)),
}


class WritingParameters(BaseModel):
    """What a request may say of how its text is written; parameters of the protocol stand beside them."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")

    max_tokens: Annotated[int | None, Field(ge=1)] = None
    temperature: Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)] = 0.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0

    @classmethod
    def read(cls, parameters: Mapping[str, Any]) -> WritingParameters:
        """Return them, or raise INVALID_ARGUMENT with the name of the wrong one."""
        try:
            return cls.model_validate(dict(parameters))
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            raise invalid(f"parameters.{'.'.join(map(str, first['loc']))}: {first['msg'][:256]}") from error

    def sampling(self, row: int) -> Sampling:
        """Return how the words of one row are drawn: rows differ in their seeds."""
        return Sampling(temperature=self.temperature, top_p=self.top_p, seed=self.seed + row)


def head_metadata(name: str, version: str, platform: str) -> ModelMetadata:
    """Return the metadata of a head."""
    return ModelMetadata(
        name=name,
        versions=(version,),
        platform=platform,
        inputs=tuple(TensorMetadata(name=one, datatype=BYTES, shape=(-1,)) for one in INPUTS_OF[name]),
        outputs=(OUTPUT_OF[name],),
    )


@dataclass(frozen=True, kw_only=True)
class Head:
    """What all heads share: who they are, and how a request is looked at before anything is done."""

    metadata: ModelMetadata
    version: str
    pictures: PictureReader
    max_rows: int
    statistics: ModelStatistics = field(default_factory=ModelStatistics)
    clock: Callable[[], float] = time.monotonic

    @property
    def name(self) -> str:
        """Return the V2 name."""
        return self.metadata.name

    def num_tokens(self, elements: Sequence[bytes]) -> int:
        """Return how many tokens some inputs have; a head says it with its answer."""
        return no_tokens(elements)

    def retry_after(self, seconds_left: float, inside: int) -> int | None:
        """Return nothing: how long a text takes is known when it has been read."""
        return None

    def count(self, seconds: float, timing: Timing, rows: int | None) -> None:
        """Count a request that took so long; `rows` is None when it got an error."""
        if rows is None:
            self.statistics.failed(seconds)
        else:
            self.statistics.succeeded(rows, seconds, timing)

    def inputs(self, request: InferRequest, deadline: float) -> list[list[bytes]]:
        """Return the elements of each input, or raise INVALID_ARGUMENT or DEADLINE_EXCEEDED."""
        (output,) = self.metadata.outputs
        for asked in request.outputs:
            if asked.name != output.name:
                raise invalid(f"model '{self.name}' has no output '{asked.name[:64]}'; it has '{output.name}'")
        given = [tensor.array.tolist() for tensor in request.all_inputs(INPUTS_OF[self.name])]
        if not 1 <= len(given[0]) <= self.max_rows:
            raise invalid(f"{len(given[0])} inputs sent; one request may have 1 to {self.max_rows}")
        in_time(deadline, self.clock())
        return given

    def answer(self, request: InferRequest, output: Tensor, **parameters: bool | int | str) -> InferResponse:
        """Return an answer to a request."""
        return InferResponse(
            model_name=self.name,
            model_version=self.version,
            id=request.id,
            outputs=(output,),
            parameters=parameters,
        )


@dataclass(frozen=True, kw_only=True)
class MatchModel(Head):
    """Does a text belong to a picture? The probability of each pair."""

    batcher: Batcher
    preprocess: TextPreprocessor
    decoupled: bool = False

    @property
    def max_batch_size(self) -> int:
        """Return how many pairs are run together at most."""
        return self.batcher.max_rows

    @property
    def running_since(self) -> float | None:
        """Return when the run that goes on began."""
        return self.batcher.running_since

    def retry_after(self, seconds_left: float, inside: int) -> int | None:
        """Return after how many seconds to come again, where one more request beside so many could not be answered in time."""
        return self.batcher.retry_after(seconds_left, inside)

    async def infer(self, request: InferRequest, deadline: float, timing: Timing) -> InferResponse:
        """Return the scores of the request's pairs."""
        pictures, texts = self.inputs(request, deadline)
        with self.batcher.admitted(len(texts), deadline):
            started = self.clock()
            tokens = self.preprocess(texts)
            features = await self.pictures.features(pictures, deadline, timing)
            timing.preprocess_seconds = max(0.0, self.clock() - started - timing.model_seconds)
            scores = await self.batcher.submit(paired(features, tokens), deadline, timing)
        return self.answer(request, Tensor(SCORE, "FP32", scores))

    async def stream(self, request: InferRequest, deadline: float, timing: Timing) -> AsyncGenerator[InferResponse]:
        """Return the only answer."""
        answer = await self.infer(request, deadline, timing)
        yield self.answer(request, answer.outputs[0], **{FINAL_RESPONSE: True})

    async def close(self) -> None:
        """End what works for the head."""
        await self.batcher.close()
        await self.pictures.close()


def paired(features: Iterable[Array], tokens: Iterable[Array]) -> Array:
    """Return rows of features and tokens."""
    pairs = list(zip(features, tokens, strict=True))
    rows = np.empty(len(pairs), object)
    rows[:] = pairs
    return rows


def on_pairs(match: Callable[[Array, Array], Array]) -> Callable[[Array], Array]:
    """Return what runs the matching head on rows of features and tokens."""

    def call(pairs: Array) -> Array:
        features, tokens = zip(*pairs, strict=True)
        return match(np.stack(features), np.stack(tokens))

    return call


@dataclass(frozen=True, kw_only=True)
class WritingModel(Head):
    """Writes about a picture: what it shows, or the answer to a question about it."""

    writer: Writer
    geometry: Geometry
    text: TextPreprocessor
    max_new_tokens: int | None = None
    decoupled: bool = True

    @property
    def max_batch_size(self) -> int:
        """Return how many texts are written together at most."""
        return self.writer.max_running

    @property
    def running_since(self) -> float | None:
        """Return when the step that goes on began."""
        return self.writer.running_since

    async def infer(self, request: InferRequest, deadline: float, timing: Timing) -> InferResponse:
        """Return the whole texts."""
        parameters = WritingParameters.read(request.parameters)
        pictures, prompts = self._read(request, deadline)
        tasks = [
            asyncio.ensure_future(joined(self._parts(prompt, picture, parameters, row, deadline, timing)))
            for row, (prompt, picture) in enumerate(zip(prompts, pictures, strict=True))
        ]
        try:
            texts = await asyncio.gather(*tasks)
        finally:
            # One that fails or a client that goes ends them all, and all their blocks are free.
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return self.answer(request, Tensor.of_bytes(TEXT, [text.encode() for text in texts]))

    async def stream(self, request: InferRequest, deadline: float, timing: Timing) -> AsyncGenerator[InferResponse]:
        """Return the text of one picture in parts as they are written; the last one says why it is the last."""
        parameters = WritingParameters.read(request.parameters)
        pictures, prompts = self._read(request, deadline)
        if len(pictures) != 1:
            raise invalid(f"{len(pictures)} inputs sent; over a stream a request of model '{self.name}' has one")
        parts = self._parts(prompts[0], pictures[0], parameters, 0, deadline, timing)
        async for part, finish, count in parts:
            told: dict[str, bool | int | str] = {FINAL_RESPONSE: finish is not None}
            if finish is not None:
                told |= {FINISH_REASON: finish, NUM_PROMPT: len(prompts[0]), NUM_WRITTEN: count}
            if part or finish:
                yield self.answer(request, Tensor.of_bytes(TEXT, [part.encode()]), **told)

    async def _parts(
        self,
        prompt: tuple[int, ...],
        picture: bytes,
        parameters: WritingParameters,
        row: int,
        deadline: float,
        timing: Timing,
    ) -> AsyncGenerator[tuple[str, Finish | None, int]]:
        """Return part after part of a text, why it ends with the last of them, and how many words there are so far."""
        started = self.clock()
        (state,) = await self.pictures.states([picture], deadline, timing)
        timing.preprocess_seconds = max(timing.preprocess_seconds, self.clock() - started)
        room = self.writer.room(len(prompt))
        writing = Writing(
            prompt=prompt,
            max_new_tokens=min(room, parameters.max_tokens or room, self.max_new_tokens or room),
            picture=state,
            sampling=parameters.sampling(row),
        )
        wording, started = Wording(self.text.words), self.clock()
        words = self.writer.words(writing, deadline)
        try:
            async for word in words:
                timing.model_seconds = self.clock() - started
                yield wording.add(word.token, last=word.finish is not None), word.finish, len(writing.written)
        finally:
            await words.aclose()

    def _read(self, request: InferRequest, deadline: float) -> tuple[list[bytes], list[tuple[int, ...]]]:
        pictures, *questions = self.inputs(request, deadline)
        if not questions:
            return pictures, [(self.geometry.start_id,)] * len(pictures)
        return pictures, [self._question(index, question) for index, question in enumerate(questions[0])]

    def _question(self, index: int, question: bytes) -> tuple[int, ...]:
        """Return the tokens of a question, which its answer continues."""
        ids = self.text.ids(index, question)
        if ids[-1:] == [self.geometry.end_id]:
            ids = ids[:-1]
        if self.writer.room(len(ids)) < 1 or len(ids) >= self.geometry.max_length - 1:
            raise invalid(
                f"text {index} has {len(ids)} tokens or more and leaves no room for an answer: "
                f"question and answer have {self.geometry.max_length} together; ask in fewer words"
            )
        return tuple(ids)

    async def close(self) -> None:
        """End what works for the head."""
        await self.writer.close()
        await self.pictures.close()


async def joined(parts: AsyncGenerator[tuple[str, Finish | None, int]]) -> str:
    """Return the whole text of its parts."""
    return "".join([part async for part, _, _ in parts])
