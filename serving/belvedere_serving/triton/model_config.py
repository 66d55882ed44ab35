"""The configuration of each model in a repository, as Triton's own protobuf messages.

A V2 model is an ensemble of two: a Python model that prepares inputs, which takes [n] as the V2 model does, and the engine,
whose runs Triton batches. Neither the name nor the shape that a client sees differs from the Ray Serve server.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from belvedere_platform.errors import CorruptData
from belvedere_platform.protocol import EMBED_TEXT, EMBEDDING, INPUT_OF
from belvedere_serving.engines.lengths import buckets
from belvedere_serving.engines.runtime import TOWER_INPUT
from belvedere_serving.triton.options import EngineBackend, RepositoryOptions

LANE = "engine_lane"
"""The resource that a run of an engine holds: models that share the cores of one replica take turns."""
ENGINE_FILE: Mapping[EngineBackend, str] = {
    "python": "model.py",
    "onnxruntime": "model.onnx",
    "tensorrt": "model.plan",
    "openvino": "model.xml",
}
_KIND = {"tensorrt": pb.ModelInstanceGroup.KIND_GPU}


@dataclass(frozen=True, kw_only=True)
class Tower:
    """One V2 model: what its engine takes and gives, without the batch. `flexible`: texts of any length up to `input_shape`."""

    name: str
    input_shape: tuple[int, ...]
    dimension: int
    flexible: bool = False

    @property
    def dims(self) -> tuple[int, ...]:
        """Return the shape of an input as Triton has it; -1 where it may differ."""
        return (-1,) if self.flexible else self.input_shape

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Return the shapes that inputs come in."""
        return tuple((length,) for length in buckets(*self.input_shape)) if self.flexible else (self.input_shape,)

    @property
    def preprocess_model(self) -> str:
        """Return the name of the model that prepares inputs."""
        return f"{self.name}_preprocess"

    @property
    def engine_model(self) -> str:
        """Return the name of the model that runs the engine."""
        return f"{self.name}_engine"

    @property
    def input_type(self) -> Any:
        """Return the datatype that the engine takes."""
        return pb.TYPE_INT64 if self.name == EMBED_TEXT else pb.TYPE_FP32


def pipeline(tower: Tower, options: RepositoryOptions) -> Any:
    """Return the ensemble that clients know."""
    name, array = INPUT_OF[tower.name], TOWER_INPUT[tower.name]
    version = options.version_number
    config = pb.ModelConfig(name=tower.name, platform="ensemble", max_batch_size=0)
    config.input.add(name=name, data_type=pb.TYPE_STRING, dims=[-1])
    config.output.add(name=EMBEDDING, data_type=pb.TYPE_FP32, dims=[-1, tower.dimension])
    steps = config.ensemble_scheduling.step
    steps.add(
        model_name=tower.preprocess_model, model_version=version, input_map={name: name}, output_map={array: array}
    )
    steps.add(
        model_name=tower.engine_model,
        model_version=version,
        input_map={array: array},
        output_map={EMBEDDING: EMBEDDING},
    )
    config.version_policy.specific.versions.append(version)
    _note(config, belvedere_version=options.version)
    return config


def preprocess(tower: Tower, options: RepositoryOptions) -> Any:
    """Return the model from BYTES to arrays. It takes one request at a time, of any number of inputs."""
    config = pb.ModelConfig(name=tower.preprocess_model, backend="python", max_batch_size=0)
    config.input.add(name=INPUT_OF[tower.name], data_type=pb.TYPE_STRING, dims=[-1])
    config.output.add(name=TOWER_INPUT[tower.name], data_type=tower.input_type, dims=[-1, *tower.dims])
    config.instance_group.add(kind=pb.ModelInstanceGroup.KIND_CPU, count=options.preprocess_instances)
    sample = config.model_warmup.add(name="one", batch_size=1).inputs[INPUT_OF[tower.name]]
    sample.data_type, sample.input_data_file = pb.TYPE_STRING, INPUT_OF[tower.name]
    sample.dims.append(1)
    config.version_policy.specific.versions.append(options.version_number)
    lengths = "any" if tower.flexible else "one"
    _note(config, tower=tower.name, max_rows=str(options.max_rows_a_request), lengths=lengths)
    return config


def engine(tower: Tower, options: RepositoryOptions) -> Any:
    """Return the model that runs the engine, batched by Triton."""
    config = pb.ModelConfig(
        name=tower.engine_model,
        backend=options.backend,
        # A request is run whole, so the limit is that of one request; batches of several are made up to the preferred size.
        max_batch_size=options.max_rows_a_request,
        default_model_filename=ENGINE_FILE[options.backend],
    )
    config.input.add(
        name=TOWER_INPUT[tower.name],
        data_type=tower.input_type,
        dims=tower.dims,
        # Texts of several lengths may come in one batch: our code runs each length apart. Other backends get one length.
        allow_ragged_batch=tower.flexible and options.backend == "python",
    )
    config.output.add(name=EMBEDDING, data_type=pb.TYPE_FP32, dims=[tower.dimension])
    _batching(config, options)
    _instances(config, options)
    _warm_up(config, tower, options)
    if options.response_cache:
        config.response_cache.enable = True
    config.version_policy.specific.versions.append(options.version_number)
    if options.backend == "python":
        _note(config, tower=tower.name, version=options.version, threads=str(options.threads))
    elif options.backend == "onnxruntime":
        _note(config, intra_op_thread_count=str(options.threads), inter_op_thread_count="1")
    return config


def _batching(config: Any, options: RepositoryOptions) -> None:
    batching = config.dynamic_batching
    batching.preferred_batch_size.append(options.max_batch_size)
    batching.max_queue_delay_microseconds = round(1000 * options.batch_wait_milliseconds)
    policy = batching.default_queue_policy
    policy.timeout_action = pb.ModelQueuePolicy.REJECT
    policy.default_timeout_microseconds = round(1e6 * options.request_timeout_seconds)
    policy.allow_timeout_override = True
    policy.max_queue_size = options.max_queued_requests


def _instances(config: Any, options: RepositoryOptions) -> None:
    kind = _KIND.get(options.backend, pb.ModelInstanceGroup.KIND_CPU)
    group = config.instance_group.add(kind=kind, count=options.instances)
    if options.rate_limit:
        group.rate_limiter.resources.add(name=LANE, count=1)
        group.rate_limiter.priority = 1


def _warm_up(config: Any, tower: Tower, options: RepositoryOptions) -> None:
    """Run one input alone and a full batch of each shape before the model is ready, from files with a real input."""
    for shape in tower.shapes:
        for rows in dict.fromkeys((1, options.max_batch_size)):
            sample = config.model_warmup.add(name=f"rows_{rows}_of_{'x'.join(map(str, shape))}", batch_size=rows)
            data = sample.inputs[TOWER_INPUT[tower.name]]
            data.data_type = tower.input_type
            data.dims.extend(shape)
            data.input_data_file = warm_up_file(tower, shape)


def warm_up_file(tower: Tower, shape: tuple[int, ...]) -> str:
    """Return the name of the file with a warm-up input of a shape."""
    name = TOWER_INPUT[tower.name]
    return f"{name}_{shape[0]}" if tower.flexible else name


def warm_up_element(element: bytes) -> bytes:
    """Return the file with one BYTES input: its length, then itself."""
    return struct.pack("<I", len(element)) + element


def _note(config: Any, **parameters: str) -> None:
    for name, value in parameters.items():
        config.parameters[name].string_value = value


def render(config: Any) -> str:
    """Return the text of a config.pbtxt."""
    text: str = text_format.MessageToString(config)
    return text


def parse(text: str, where: Path) -> Any:
    """Return the configuration in a config.pbtxt, checked against Triton's schema. Raises CorruptData."""
    try:
        return text_format.Parse(text, pb.ModelConfig())
    except text_format.ParseError as error:
        raise CorruptData(f"{where} is not a model configuration of Triton: {error}") from error
