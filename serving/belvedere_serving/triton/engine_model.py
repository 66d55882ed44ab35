"""Runs inside Triton's Python backend: an engine, by the runtime that the Ray Serve server has. Triton makes the batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from belvedere_platform.protocol import EMBEDDING, Reason, V2Error
from belvedere_serving.engines.loading import load_runtime
from belvedere_serving.engines.runtime import TOWER_INPUT
from belvedere_serving.triton.backend import parameters_of, run_by_shape, triton_error


class TritonPythonModel:
    """One instance of an `…_engine` model."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the engine that lies beside this file."""
        parameters = parameters_of(args)
        self._tower, self._version = parameters["tower"], parameters["version"]
        folder = Path(args["model_repository"]) / args["model_version"]
        self._runtime = load_runtime(folder, (self._tower,), threads=int(parameters["threads"]))

    def execute(self, requests: list[Any]) -> list[Any]:
        """Run the requests of each length together; if that fails, each alone, so that only the one at fault gets the error."""
        name = TOWER_INPUT[self._tower]
        arrays = [pb_utils.get_input_tensor_by_name(request, name).as_numpy() for request in requests]
        return [self._response(outcome) for outcome in run_by_shape(self._run, arrays)]

    def _run(self, rows: Any) -> Any:
        return self._runtime.run(self._tower, {TOWER_INPUT[self._tower]: rows})[EMBEDDING]

    def _response(self, outcome: Any) -> Any:
        if isinstance(outcome, Exception):
            message = f"model '{self._tower}' of {self._version} failed on this input: {str(outcome)[:256]}"
            return pb_utils.InferenceResponse(error=triton_error(pb_utils, V2Error(Reason.INTERNAL, message)))
        return pb_utils.InferenceResponse([pb_utils.Tensor(EMBEDDING, np.ascontiguousarray(outcome))])
