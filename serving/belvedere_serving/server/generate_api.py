"""Triton's generate extension: one input of each kind as plain JSON, the answer whole (`generate`) or in events (`generate_stream`)."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from belvedere_platform.protocol import IMAGE, InferRequest, InferResponse, Tensor, invalid
from belvedere_platform.protocol.http_messages import error_body
from belvedere_serving.server.data_url import picture_of
from belvedere_serving.server.event_stream import EventStream, event
from belvedere_serving.server.service import InferenceService
from belvedere_serving.server.timing import Timing


def parse(service: InferenceService, name: str, version: str, body: bytes) -> InferRequest:
    """Return the request in a body: fields named as the model's inputs are these, all others are parameters. Raises V2Error."""
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise invalid(f"the body is not JSON: {str(error)[:128]}") from error
    if not isinstance(fields, dict):
        raise invalid("the body must be a JSON object: fields are the model's inputs, and parameters")
    inputs, parameters = [], dict[str, Any]()
    known = [one.name for one in service.model(name, version).metadata.inputs]
    for field, value in fields.items():
        if field in known:
            inputs.append(_tensor(field, value))
        elif field == "parameters" and isinstance(value, dict):
            parameters |= value
        else:
            parameters[field] = value
    kept = {key[:256]: value for key, value in parameters.items() if isinstance(value, (bool, int, float, str))}
    given = fields.get("id", "")
    identity = given[:256] if isinstance(given, str) else ""
    return InferRequest(model_name=name, model_version=version, id=identity, inputs=tuple(inputs), parameters=kept)


def _tensor(name: str, value: Any) -> Tensor:
    if not isinstance(value, str):
        raise invalid(f"{name}: {type(value).__name__} sent; it must be one string")
    return Tensor.of_bytes(name, [picture_of(name, value) if name == IMAGE else value.encode(errors="replace")])


async def generate(
    service: InferenceService,
    name: str,
    version: str,
    body: bytes,
    *,
    timeout_seconds: float | None,
    carrier: Mapping[str, str],
) -> tuple[bytes, Timing]:
    """Return the whole answer."""
    return await service.infer(
        lambda: parse(service, name, version, body),
        lambda _, response: json.dumps(_document(response), ensure_ascii=False).encode(),
        "http",
        timeout_seconds=timeout_seconds,
        carrier=carrier,
    )


def generate_stream(
    service: InferenceService,
    name: str,
    version: str,
    body: bytes,
    *,
    timeout_seconds: float | None,
    carrier: Mapping[str, str],
) -> EventStream:
    """Return the answer in events."""

    async def events() -> AsyncGenerator[bytes]:
        answers = service.stream(
            lambda: parse(service, name, version, body), "http", timeout_seconds=timeout_seconds, carrier=carrier
        )
        async with contextlib.aclosing(answers) as found:
            async for answer in found:
                yield event({**_document(answer), **answer.parameters})

    return EventStream(events(), lambda error: event(error_body(error.message)))


def _document(response: InferResponse) -> dict[str, Any]:
    named = {"id": response.id} if response.id else {}
    values = {tensor.name: _value(tensor) for tensor in response.outputs}
    return {**named, "model_name": response.model_name, "model_version": response.model_version, **values}


def _value(tensor: Tensor) -> Any:
    """Return the only row as JSON."""
    value = tensor.array[0]
    return value.decode() if isinstance(value, bytes) else value.tolist()
