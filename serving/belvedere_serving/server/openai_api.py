"""`/v1/embeddings` as OpenAI's clients ask it. Texts are texts; a data URL of a picture is embedded as that picture."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from belvedere_platform.protocol import (
    EMBED_IMAGE,
    EMBED_TEXT,
    EMBEDDING,
    INPUT_OF,
    InferRequest,
    Reason,
    Tensor,
    V2Error,
    invalid,
)
from belvedere_serving.server.service import InferenceService
from belvedere_serving.server.timing import Timing

MODELS_PATH, EMBEDDINGS_PATH = "/v1/models", "/v1/embeddings"
_PICTURE = "data:image/"


class EmbeddingsRequest(BaseModel):
    """The body of a request. What is not known is refused by pydantic, so that nothing asked for is passed over in silence."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    input: Annotated[str | list[str], Field(union_mode="left_to_right")]
    model: Annotated[str, Field(max_length=256)]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int | None, Field(ge=1)] = None
    user: str | None = None


async def embeddings(
    service: InferenceService, body: bytes, *, timeout_seconds: float | None, carrier: Mapping[str, str]
) -> tuple[bytes, Timing]:
    """Return the answer to a request. Raises V2Error."""
    asked = _parse(body, service)
    texts = [asked.input] if isinstance(asked.input, str) else asked.input
    elements, model = _elements(texts)
    request = InferRequest(
        model_name=model, inputs=(Tensor.of_bytes(INPUT_OF[model], elements),), parameters={"openai": True}
    )
    tokens = service.num_tokens(model, elements)
    return await service.infer(
        lambda: request,
        lambda _, response: _render(asked, response.output(EMBEDDING).array, tokens),
        "openai",
        timeout_seconds=timeout_seconds,
        carrier=carrier,
    )


def models(service: InferenceService) -> dict[str, Any]:
    """Return the list of models: one, by the two names it answers to."""
    names = dict.fromkeys((service.model_name, service.version))
    return {
        "object": "list",
        "data": [{"id": name, "object": "model", "created": 0, "owned_by": "belvedere"} for name in names if name],
    }


def error_body(error: V2Error) -> bytes:
    """Return an error as OpenAI's clients read it."""
    kind = "invalid_request_error" if error.reason.is_client_fault else "server_error"
    if error.reason is Reason.RESOURCE_EXHAUSTED:
        kind = "rate_limit_error"
    return json.dumps(
        {"error": {"message": error.message, "type": kind, "param": None, "code": error.reason.name.lower()}}
    ).encode()


def _parse(body: bytes, service: InferenceService) -> EmbeddingsRequest:
    try:
        asked = EmbeddingsRequest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part)[:64] for part in first["loc"]) or "body"
        raise invalid(f"{where}: {first['msg'][:256]}") from error
    check_model(asked.model, service)
    return asked


def check_model(name: str, service: InferenceService) -> None:
    """Raise NOT_FOUND for a model that is not this server's."""
    known = [one for one in (service.model_name, service.version) if one]
    if name not in known:
        raise V2Error(Reason.NOT_FOUND, f"model: there is no model '{name[:64]}'; this is {' or '.join(known)}")


def _elements(texts: Sequence[str]) -> tuple[list[bytes], str]:
    pictures = [text.startswith(_PICTURE) for text in texts]
    if any(pictures) and not all(pictures):
        raise invalid("input: texts and pictures are mixed; send them in two requests")
    if not any(pictures):
        return [text.encode(errors="replace") for text in texts], EMBED_TEXT
    return [_picture(index, text) for index, text in enumerate(texts)], EMBED_IMAGE


def _picture(index: int, url: str) -> bytes:
    head, _, data = url.partition(",")
    if not head.endswith(";base64"):
        raise invalid(f"input.{index}: a picture must be a data URL with base64, data:image/png;base64,…")
    try:
        return base64.b64decode(data, validate=True)
    except binascii.Error as error:
        raise invalid(f"input.{index}: the data URL is not base64: {error}") from error


def _render(asked: EmbeddingsRequest, vectors: npt.NDArray[np.float32], tokens: int) -> bytes:
    if asked.dimensions not in (None, vectors.shape[1]):
        raise invalid(f"dimensions: {asked.dimensions} asked; this model has {vectors.shape[1]}")
    data = [
        {"object": "embedding", "index": index, "embedding": _encoded(vector, asked.encoding_format)}
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return json.dumps({"object": "list", "data": data, "model": asked.model, "usage": usage}).encode()


def _encoded(vector: npt.NDArray[np.float32], encoding: str) -> list[float] | str:
    if encoding == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    floats: list[float] = vector.tolist()
    return floats
