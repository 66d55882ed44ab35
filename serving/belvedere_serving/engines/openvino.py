"""Engines for OpenVINO: its own form of an ONNX model, and what runs it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from belvedere_platform.errors import CorruptData, Unavailable
from belvedere_platform.protocol import EMBEDDING
from belvedere_serving.engines.runtime import TOWER_INPUT, Arrays

_HINT = {"fp32": "f32", "int8": "f32", "bf16": "bf16"}
"""What the parts are computed in that are not quantized."""


def convert(onnx: Path, target: Path) -> None:
    """Write an ONNX model as `target` (.xml) and its weights beside it (.bin)."""
    library = _library()
    try:
        library.save_model(library.Core().read_model(onnx), target, compress_to_fp16=False)
    except RuntimeError as error:
        raise CorruptData(f"OpenVINO cannot read {onnx.name}: {error}") from error


class OpenVinoRuntime:
    """Runs `NAME.xml` files on the CPU. One request at a time: a replica has one engine."""

    def __init__(self, files: Mapping[str, Path], *, precision: str = "fp32", threads: int = 1) -> None:
        library = _library()
        self._requests: dict[str, Any] = {}
        self._dimensions: dict[str, int] = {}
        self._flexible: dict[str, bool] = {}
        options = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": f"{threads}",
            "INFERENCE_PRECISION_HINT": _HINT[precision],
        }
        for name, path in files.items():
            try:
                compiled = library.Core().compile_model(path, "CPU", options)
            except RuntimeError as error:
                raise CorruptData(f"OpenVINO cannot load {path}: {error}") from error
            self._requests[name] = compiled.create_infer_request()
            self._flexible[name] = bool(compiled.input(0).partial_shape[1].is_dynamic)
            self._dimensions[name] = int(compiled.output(0).partial_shape[-1].get_length())

    def run(self, model_name: str, arrays: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Return the outputs for a batch."""
        given = np.ascontiguousarray(arrays[TOWER_INPUT[model_name]])
        outputs = self._requests[model_name].infer([given], share_inputs=True)
        # The tensor is the request's own and is written again by the next run.
        return {EMBEDDING: np.array(outputs[0])}

    def dimension(self, model_name: str) -> int:
        """Return the length of the model's embeddings."""
        return self._dimensions[model_name]

    def flexible(self, model_name: str) -> bool:
        """Whether the model takes texts of any length up to its longest."""
        return self._flexible[model_name]


def _library() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise Unavailable("OpenVINO is not installed here: pip install 'belvedere[openvino]'") from error
    return openvino
