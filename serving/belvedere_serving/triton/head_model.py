"""Runs inside Triton's Python backend: match, explain, caption or answer, by the code of the Ray Serve server."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from belvedere_platform.protocol import BYTES, IMAGE, InferRequest, InferResponse, Tensor, V2Error
from belvedere_serving.server.config import ModelOptions
from belvedere_serving.server.data_url import picture_of
from belvedere_serving.server.heads import INPUTS_OF
from belvedere_serving.triton.backend import parameters_of, triton_error
from belvedere_serving.triton.head_runner import Part, load_head


class TritonPythonModel:
    """The one instance of a head."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the programs that lie beside this file."""
        parameters = parameters_of(args)
        folder = Path(args["model_repository"]) / args["model_version"]
        self._name = parameters["head"]
        self._decoupled = bool(json.loads(args["model_config"])["model_transaction_policy"]["decoupled"])
        self._head = load_head(folder, self._name, ModelOptions.model_validate_json(parameters["options"]))

    def execute(self, requests: list[Any]) -> list[Any] | None:
        """Answer the requests; of those that write, each sends its parts when they come, long after this returns."""
        if not self._decoupled:
            return [self._answer(request) for request in requests]
        for request in requests:
            self._begin(request)
        return None

    def finalize(self) -> None:
        """End what goes on."""
        self._head.close()

    def _answer(self, request: Any) -> Any:
        try:
            return _response(self._head.infer(self._read(request), _timeout_seconds(request)))
        except V2Error as error:
            return pb_utils.InferenceResponse(error=triton_error(pb_utils, error))

    def _begin(self, request: Any) -> None:
        sender = request.get_response_sender()
        try:
            self._head.stream(
                self._read(request), partial(_send, sender), sender.is_cancelled, _timeout_seconds(request)
            )
        except V2Error as error:
            _send(sender, Part(outcome=error, final=True))

    def _read(self, request: Any) -> InferRequest:
        parameters = json.loads(request.parameters() or "{}")
        inputs = tuple(Tensor.of_bytes(name, _elements(request, name)) for name in INPUTS_OF[self._name])
        return InferRequest(model_name=self._name, id=request.request_id(), inputs=inputs, parameters=parameters)


def _elements(request: Any, name: str) -> list[bytes]:
    elements: list[bytes] = pb_utils.get_input_tensor_by_name(request, name).as_numpy().reshape(-1).tolist()
    if name != IMAGE:
        return elements
    # Triton's generate takes text alone, so a picture comes as a data URL there.
    return [picture_of(name, one.decode()) if one.startswith(b"data:") else one for one in elements]


def _timeout_seconds(request: Any) -> float | None:
    return request.timeout() / 1e6 or None


def _response(answer: InferResponse) -> Any:
    return pb_utils.InferenceResponse([_tensor(one) for one in answer.outputs])


def _tensor(one: Tensor) -> Any:
    kind = np.object_ if one.datatype == BYTES else np.float32
    return pb_utils.Tensor(one.name, np.ascontiguousarray(np.asarray(one.array, kind)))


def _send(sender: Any, part: Part) -> None:
    flags = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if part.final else 0
    if isinstance(part.outcome, V2Error):
        sender.send(pb_utils.InferenceResponse(error=triton_error(pb_utils, part.outcome)), flags=flags)
    elif part.outcome is None or (part.final and not any(part.outcome.outputs[0].array.tolist())):
        sender.send(flags=flags)
    else:
        sender.send(_response(part.outcome), flags=flags)
