"""`/v1/chat/completions` as OpenAI's clients ask it: one picture and, if there is one, a question about it."""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from collections.abc import AsyncGenerator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from belvedere_platform.protocol import (
    ANSWER,
    CAPTION,
    IMAGE,
    TEXT,
    InferRequest,
    InferResponse,
    Reason,
    Tensor,
    V2Error,
    invalid,
)
from belvedere_serving.server import openai_api
from belvedere_serving.server.data_url import picture_of
from belvedere_serving.server.event_stream import EventStream, event
from belvedere_serving.server.heads import FINISH_REASON, NUM_PROMPT, NUM_WRITTEN
from belvedere_serving.server.service import InferenceService

PATH = "/v1/chat/completions"


class _Asked(BaseModel):
    # What is not known is refused, so that nothing asked for is passed over in silence.
    model_config = ConfigDict(extra="forbid", frozen=True)


class TextPart(_Asked):
    """A text of a message."""

    type: Literal["text"]
    text: str


class ImageUrl(_Asked):
    """A picture as a data URL. How closely to look is the model's affair: it sees pictures in one size."""

    url: str
    detail: Literal["auto", "low", "high"] = "auto"


class ImagePart(_Asked):
    """A picture of a message."""

    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class ChatMessage(_Asked):
    """The one message: this model answers one question about one picture and knows no conversation."""

    role: Literal["user"]
    content: list[Part]


class StreamOptions(_Asked):
    """What is sent beside the text."""

    include_usage: bool = False


class ChatRequest(_Asked):
    """The body of a request."""

    model: Annotated[str, Field(max_length=256)]
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=1)]
    max_tokens: Annotated[int | None, Field(ge=1)] = None
    max_completion_tokens: Annotated[int | None, Field(ge=1)] = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    n: Literal[1] = 1
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    user: str | None = None


def completions(
    service: InferenceService, body: bytes, *, timeout_seconds: float | None, carrier: Mapping[str, str]
) -> tuple[ChatRequest, AsyncGenerator[InferResponse]]:
    """Return what is asked and the parts of its answer. Raises V2Error."""
    asked = _parse(body, service)
    request = _request(asked)
    return asked, service.stream(lambda: request, "openai", timeout_seconds=timeout_seconds, carrier=carrier)


async def whole(asked: ChatRequest, answers: AsyncGenerator[InferResponse]) -> bytes:
    """Return the answer in one."""
    text, last = "", None
    async with contextlib.aclosing(answers) as found:
        async for last in found:
            text += _text(last)
    assert last is not None, "a text ends with an answer that says so"
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "logprobs": None}
    finished = {**choice, "finish_reason": last.parameters[FINISH_REASON]}
    return json.dumps({**_head(asked, "chat.completion"), "choices": [finished], "usage": _usage(last)}).encode()


def stream(asked: ChatRequest, answers: AsyncGenerator[InferResponse]) -> EventStream:
    """Return the answer in events, the last of which is [DONE]."""
    head = _head(asked, "chat.completion.chunk")

    def chunk(delta: dict[str, str], finish: object = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return event({**head, "choices": [choice]})

    async def events() -> AsyncGenerator[bytes]:
        begun = False
        async with contextlib.aclosing(answers) as found:
            async for answer in found:
                delta = {} if begun else {"role": "assistant"}
                begun = True
                text = _text(answer)
                yield chunk({**delta, "content": text} if text or delta else {}, answer.parameters.get(FINISH_REASON))
        if asked.stream_options.include_usage:
            yield event({**head, "choices": [], "usage": _usage(answer)})
        yield event(b"[DONE]")

    return EventStream(events(), lambda error: event(openai_api.error_body(error)))


def _head(asked: ChatRequest, kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": kind,
        "created": round(time.time()),
        "model": asked.model,
    }


def _text(answer: InferResponse) -> str:
    element: bytes = answer.output(TEXT).array[0]
    return element.decode()


def _usage(last: InferResponse) -> dict[str, int]:
    prompt, written = (int(last.parameters[name]) for name in (NUM_PROMPT, NUM_WRITTEN))
    return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}


def _parse(body: bytes, service: InferenceService) -> ChatRequest:
    try:
        asked = ChatRequest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part)[:64] for part in first["loc"]) or "body"
        hint = ""
        if first["loc"][:1] == ("messages",) and first["type"] in ("too_long", "literal_error"):
            hint = "; this model answers one question about one picture: send one message of the user"
        raise invalid(f"{where}: {first['msg'][:256]}{hint}") from error
    openai_api.check_model(asked.model, service)
    if not service.has(CAPTION):
        message = f"model: '{asked.model[:64]}' writes no texts; it has no decoder: use /v1/embeddings"
        raise V2Error(Reason.INVALID_ARGUMENT, message)
    return asked


def _request(asked: ChatRequest) -> InferRequest:
    """Return the V2 request: an answer where there is a question, a caption where there is none."""
    parts = asked.messages[0].content
    urls = [part.image_url.url for part in parts if isinstance(part, ImagePart)]
    if len(urls) != 1:
        raise invalid(f"messages.0.content: {len(urls)} pictures sent; send one, as image_url with a data URL")
    picture = picture_of("messages.0.content: image_url", urls[0])
    question = " ".join(part.text.strip() for part in parts if isinstance(part, TextPart)).strip()
    parameters: dict[str, Any] = {"temperature": asked.temperature, "top_p": asked.top_p, "seed": asked.seed}
    most = asked.max_completion_tokens or asked.max_tokens
    if most is not None:
        parameters["max_tokens"] = most
    inputs = [Tensor.of_bytes(IMAGE, [picture])]
    if question:
        inputs.append(Tensor.of_bytes(TEXT, [question.encode(errors="replace")]))
    return InferRequest(model_name=ANSWER if question else CAPTION, inputs=tuple(inputs), parameters=parameters)
