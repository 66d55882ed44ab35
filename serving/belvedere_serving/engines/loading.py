"""From the files of an engine to the runtime that runs them: `engine.json` says which, and ONNX Runtime needs none."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy.typing as npt

from belvedere_platform.errors import CorruptData
from belvedere_serving.engines.runtime import Arrays, OnnxRuntime, Variant

ENGINE_FILE = "engine.json"
SUFFIXES: dict[str, tuple[str, ...]] = {
    "onnxruntime": (".onnx",),
    "openvino": (".xml", ".bin"),
    "torch": (".pt2",),
    "tensorrt": (".plan",),
    "litert": (".tflite",),
}
"""By runtime, the files of one tower; the first is the one that is opened."""


class LoadedRuntime(Protocol):
    """A runtime that also knows what it answers."""

    def run(self, model_name: str, arrays: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Return the outputs for a batch."""
        ...

    def dimension(self, model_name: str) -> int:
        """Return the length of the model's embeddings."""
        ...

    def flexible(self, model_name: str) -> bool:
        """Whether the model takes texts of any length up to its longest."""
        ...


@dataclass(frozen=True)
class Shape:
    """What a tower answers and takes: the length of its embeddings, and whether texts may have any length up to its longest."""

    dimension: int
    flexible: bool


def engine_json(variant: Variant, towers: Mapping[str, LoadedRuntime]) -> bytes:
    """Return the file that says what the engine is. `towers`: what runs each."""
    shapes = {
        name: {"dimension": runtime.dimension(name), "flexible": runtime.flexible(name)}
        for name, runtime in towers.items()
    }
    return json.dumps({"runtime": variant.runtime, "precision": variant.precision, "towers": shapes}).encode()


def read_shapes(folder: Path, towers: Sequence[str], *, threads: int) -> dict[str, Shape]:
    """Return the shape of each tower. Only of an engine that does not say them is the runtime loaded, which may not run here."""
    path = folder / ENGINE_FILE
    said = json.loads(path.read_text(encoding="utf-8")).get("towers") if path.exists() else None
    if said:
        return {name: Shape(int(said[name]["dimension"]), bool(said[name]["flexible"])) for name in towers}
    runtime = load_runtime(folder, towers, threads=threads)
    return {name: Shape(runtime.dimension(name), runtime.flexible(name)) for name in towers}


def read_variant(folder: Path) -> Variant:
    """Return what an engine is. One without the file is from before there was more than ONNX Runtime."""
    path = folder / ENGINE_FILE
    if not path.exists():
        return Variant("onnxruntime", "fp32")
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        return Variant(str(said["runtime"]), str(said["precision"]))
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptData(f"{path} does not say what the engine is: {error}; build it again") from error


def load_runtime(folder: Path, towers: Sequence[str], *, threads: int) -> LoadedRuntime:
    """Return what runs these towers of the engine in a folder."""
    variant = read_variant(folder)
    suffixes = SUFFIXES.get(variant.runtime)
    if suffixes is None:
        raise CorruptData(f"the engine is for runtime {variant.runtime}; known are {', '.join(SUFFIXES)}")
    missing = [name for tower in towers for end in suffixes if not (folder / (name := f"{tower}{end}")).is_file()]
    if missing:
        raise CorruptData(f"the engine lacks {', '.join(missing)}; build it again with `belvedere engine build`")
    return open_runtime(variant, {tower: folder / f"{tower}{suffixes[0]}" for tower in towers}, threads=threads)


def open_runtime(variant: Variant, files: dict[str, Path], *, threads: int = 1) -> LoadedRuntime:
    """Return the runtime of a variant for these files."""
    return _OPEN[variant.runtime](variant, files, threads)


def _onnxruntime(variant: Variant, files: dict[str, Path], threads: int) -> LoadedRuntime:
    return OnnxRuntime(files, threads=threads, bf16=variant.precision == "bf16")


def _openvino(variant: Variant, files: dict[str, Path], threads: int) -> LoadedRuntime:
    from belvedere_serving.engines.openvino import OpenVinoRuntime

    return OpenVinoRuntime(files, precision=variant.precision, threads=threads)


def _torch(variant: Variant, files: dict[str, Path], threads: int) -> LoadedRuntime:
    from belvedere_serving.engines.torch_engine import TorchEngine

    return TorchEngine(files)


def _tensorrt(variant: Variant, files: dict[str, Path], threads: int) -> LoadedRuntime:
    from belvedere_serving.engines.tensorrt import TensorRtRuntime

    return TensorRtRuntime(files)


def _litert(variant: Variant, files: dict[str, Path], threads: int) -> LoadedRuntime:
    from belvedere_serving.engines.litert import LiteRtRuntime

    return LiteRtRuntime(files, threads=threads)


_OPEN: dict[str, Callable[[Variant, dict[str, Path], int], LoadedRuntime]] = {
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
    "torch": _torch,
    "tensorrt": _tensorrt,
    "litert": _litert,
}
