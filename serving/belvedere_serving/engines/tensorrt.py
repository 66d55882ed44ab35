"""Engines for TensorRT: a plan built on the GPU it is for, and what runs it.

Where there is no GPU the plans are made by TensorRT for RTX in tests, which reads and compiles models as TensorRT 11 does; nothing runs them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from belvedere_platform.errors import BelvedereError, CorruptData, Unavailable
from belvedere_platform.protocol import EMBEDDING
from belvedere_serving.engines.device import Device
from belvedere_serving.engines.lengths import buckets
from belvedere_serving.engines.runtime import TOWER_INPUT, Arrays

PROFILE_BATCHES = (1, 16, 64)
"""Smallest, usual and largest batch of the optimization profile; a run must lie between the outer two."""
WORKSPACE_BYTES = 1 << 30


class BuildFailed(BelvedereError):
    """TensorRT cannot make a plan of a model."""


def timing_cache(device: Device, cache: Path) -> Path:
    """Return the file in which the kernels stand that were timed on a GPU with the TensorRT that is installed here."""
    made_with = f"{device} {_library().__version__}"
    return cache / "tensorrt" / f"{hashlib.sha256(made_with.encode()).hexdigest()[:16]}.timing"


def build_plan(onnx: Path, target: Path, input_shape: tuple[int, ...], timings: Path) -> None:
    """Write the plan of an ONNX model for this GPU. Raises BuildFailed.

    The model itself says in which number format each of its parts is: TensorRT 11 takes no other word for it.
    `timings`: kernels that were timed once on this GPU are not timed again; those of this build are added.
    """
    trt = _library()
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    network = _network(trt, builder, logger, onnx)
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
    profile = builder.create_optimization_profile()
    given = network.get_input(0)
    profile.set_shape(given.name, *profile_shapes(tuple(given.shape), input_shape))
    config.add_optimization_profile(profile)
    config.set_timing_cache(_timed_before(config, timings), ignore_mismatch=False)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BuildFailed(f"TensorRT built no plan of {onnx.name}; its log says why")
    target.write_bytes(bytes(plan))
    _keep(timings, bytes(config.get_timing_cache().serialize()))


def _network(trt: Any, builder: Any, logger: Any, onnx: Path) -> Any:
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx)):
        said = "; ".join(str(parser.get_error(number)) for number in range(parser.num_errors))
        raise BuildFailed(f"TensorRT cannot read {onnx.name}: {said[:1000]}")
    return network


def _timed_before(config: Any, timings: Path) -> Any:
    """Return the cache to build with. One that cannot be read, of another TensorRT say, is begun anew."""
    known = timings.read_bytes() if timings.is_file() else b""
    return config.create_timing_cache(known) or config.create_timing_cache(b"")


def _keep(timings: Path, content: bytes) -> None:
    timings.parent.mkdir(parents=True, exist_ok=True)
    # Several builds may end at once; the last one's is as good as any.
    draft = timings.with_suffix(f".{os.getpid()}")
    draft.write_bytes(content)
    draft.replace(timings)


def profile_shapes(network_shape: tuple[int, ...], longest: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return smallest, usual and largest shape of the input. A text has a length of its own where the network leaves it free."""
    if network_shape[1] != -1:
        return [(batch, *longest) for batch in PROFILE_BATCHES]
    known = buckets(longest[0])
    lengths = (known[0], known[len(known) // 2], known[-1])
    return [(batch, length, *longest[1:]) for batch, length in zip(PROFILE_BATCHES, lengths, strict=True)]


class TensorRtRuntime:
    """Runs `NAME.plan` files on the GPU; torch keeps the buffers."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        import torch

        trt = _library()
        self._torch = torch
        self._logger = trt.Logger(trt.Logger.WARNING)
        # A plan is executable: it comes from the artifact store, checked against its digest, and from nowhere else.
        self._runtime = trt.Runtime(self._logger)
        self._stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._engines = {name: self._load(path) for name, path in files.items()}
        self._contexts = {name: engine.create_execution_context() for name, engine in self._engines.items()}

    def _load(self, path: Path) -> Any:
        engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if engine is None:
            raise CorruptData(f"TensorRT cannot load {path}: it is for another GPU or another version; build it again")
        return engine

    def run(self, model_name: str, arrays: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Return the outputs for a batch, in parts where it is larger than the profile."""
        rows, largest = arrays[TOWER_INPUT[model_name]], PROFILE_BATCHES[-1]
        parts = [self._run(model_name, rows[start : start + largest]) for start in range(0, len(rows), largest)]
        return {EMBEDDING: parts[0] if len(parts) == 1 else np.concatenate(parts)}

    def _run(self, model_name: str, rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
        context, name = self._contexts[model_name], TOWER_INPUT[model_name]
        with self._torch.cuda.stream(self._stream):
            given = self._torch.from_numpy(np.ascontiguousarray(rows)).cuda(non_blocking=True)
            context.set_input_shape(name, tuple(given.shape))
            answer = self._torch.empty(tuple(context.get_tensor_shape(EMBEDDING)), device="cuda")
            context.set_tensor_address(name, given.data_ptr())
            context.set_tensor_address(EMBEDDING, answer.data_ptr())
            if not context.execute_async_v3(self._stream.cuda_stream):
                raise RuntimeError(f"TensorRT could not run {model_name} on {len(rows)} inputs")
            found: npt.NDArray[Any] = answer.cpu().numpy()
        return found

    def dimension(self, model_name: str) -> int:
        """Return the length of the model's embeddings."""
        return int(self._engines[model_name].get_tensor_shape(EMBEDDING)[-1])

    def flexible(self, model_name: str) -> bool:
        """Whether the model takes texts of any length up to its longest."""
        return int(self._engines[model_name].get_tensor_shape(TOWER_INPUT[model_name])[1]) == -1


def _library() -> Any:
    try:
        import tensorrt
    except ImportError as error:
        raise Unavailable(
            "TensorRT is not installed here: it is in NVIDIA's images, or pip install tensorrt"
        ) from error
    return tensorrt
