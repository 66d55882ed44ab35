"""What our models in Triton's Python backend share: parameters, errors, and a failure that stays with its request."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from belvedere_platform.protocol import Reason, V2Error

Array = npt.NDArray[Any]
_CODES = {
    Reason.INVALID_ARGUMENT: "INVALID_ARG",
    Reason.NOT_FOUND: "NOT_FOUND",
    Reason.UNAVAILABLE: "UNAVAILABLE",
    Reason.RESOURCE_EXHAUSTED: "UNAVAILABLE",
    Reason.CANCELLED: "CANCELLED",
}


def parameters_of(arguments: Mapping[str, str]) -> dict[str, str]:
    """Return the parameters in a model's configuration."""
    config = json.loads(arguments["model_config"])
    return {name: value["string_value"] for name, value in config["parameters"].items()}


def triton_error(backend: Any, error: V2Error) -> Any:
    """Return the error as Triton has it; `backend` is its module `triton_python_backend_utils`."""
    return backend.TritonError(error.message, getattr(backend.TritonError, _CODES.get(error.reason, "INTERNAL")))


def run_apart(run: Callable[[Array], Array], arrays: Sequence[Array]) -> list[Array | Exception]:
    """Return the outputs of each array: run joined, or one by one when that fails. What is not finite is a failure."""
    try:
        outputs = run(arrays[0] if len(arrays) == 1 else np.concatenate(arrays))
    except Exception as error:  # noqa: BLE001 - whatever an engine raises, its request gets an answer
        if len(arrays) == 1:
            return [error]
        return [outcome for array in arrays for outcome in run_apart(run, [array])]
    ends = np.cumsum([len(array) for array in arrays])
    return [_finite(part) for part in np.split(outputs, ends[:-1])]


def run_by_shape(run: Callable[[Array], Array], arrays: Sequence[Array]) -> list[Array | Exception]:
    """Return the outputs of each array; those whose rows have one shape are run together."""
    places: dict[tuple[int, ...], list[int]] = {}
    for place, array in enumerate(arrays):
        places.setdefault(array.shape[1:], []).append(place)
    found: dict[int, Array | Exception] = {}
    for alike in places.values():
        found |= zip(alike, run_apart(run, [arrays[place] for place in alike]), strict=True)
    return [found[place] for place in range(len(arrays))]


def _finite(outputs: Array) -> Array | Exception:
    if math.isfinite(float(np.sum(outputs))):
        return outputs
    return ArithmeticError("it computed a value that is not a number")
