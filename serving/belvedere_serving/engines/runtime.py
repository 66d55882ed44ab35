"""What a runtime can do, and what runs an engine with ONNX Runtime. The others have files of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy.typing as npt

from belvedere_platform.errors import CorruptData
from belvedere_platform.protocol import EMBED_IMAGE, EMBED_TEXT, EMBEDDING

Arrays = Mapping[str, npt.NDArray[Any]]
TOWER_INPUT = {EMBED_TEXT: "tokens", EMBED_IMAGE: "pixels"}
"""The array each tower takes; all answer with EMBEDDING."""


@dataclass(frozen=True, order=True)
class Variant:
    """One way to run a model."""

    runtime: str
    precision: str

    def __str__(self) -> str:
        return f"{self.runtime} {self.precision}"


class Runtime(Protocol):
    """Runs the towers of one model."""

    def run(self, model_name: str, arrays: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Return the outputs for a batch. Whatever a runtime raises, the batch has no answer."""
        ...


def onnx_session(path: Path, *, threads: int, bf16: bool = False) -> Any:
    """Return ONNX Runtime's session of a file on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # A waiting thread that spins takes the core of a replica beside it.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if bf16:
        options.add_session_config_entry("mlas.enable_gemm_fastmath_arm64_bfloat16", "1")
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise CorruptData(f"ONNX Runtime cannot load {path}: {error}") from error


class OnnxRuntime:
    """Runs `NAME.onnx` files on the CPU, one session each."""

    def __init__(self, files: Mapping[str, Path], *, threads: int = 1, bf16: bool = False) -> None:
        self._sessions = {name: onnx_session(path, threads=threads, bf16=bf16) for name, path in files.items()}

    def run(self, model_name: str, arrays: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Return the outputs for a batch."""
        (embedding,) = self._sessions[model_name].run([EMBEDDING], dict(arrays))
        return {EMBEDDING: embedding}

    def dimension(self, model_name: str) -> int:
        """Return the length of the model's embeddings."""
        return int(self._sessions[model_name].get_outputs()[0].shape[-1])

    def flexible(self, model_name: str) -> bool:
        """Whether the model takes texts of any length up to its longest."""
        return not isinstance(self._sessions[model_name].get_inputs()[0].shape[1], int)
