"""What the server says of its models beyond V2's metadata: Triton's extensions for configuration, index and statistics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from google.protobuf import json_format
from tritonclient.grpc import service_pb2 as pb

from belvedere_platform.protocol import BYTES, ModelMetadata, Reason, TensorMetadata, V2Error
from belvedere_serving.server.models import Model
from belvedere_serving.triton.options import version_number

READY = "READY"


def model_config(metadata: ModelMetadata, max_batch_size: int, *, decoupled: bool = False) -> dict[str, Any]:
    """Return the configuration of a model in the form of Triton's ModelConfig.

    `max_batch_size` is 0 there, as it is for Triton's ensemble of the same name: the first dimension is the client's
    to choose, and how many inputs are run together is the server's affair. It stands in the parameters.
    `decoupled`: over a stream a request may get several answers.
    """
    policy = {"model_transaction_policy": {"decoupled": True}} if decoupled else {}
    return {
        **policy,
        "name": metadata.name,
        "platform": metadata.platform,
        "max_batch_size": 0,
        "input": [_tensor(one) for one in metadata.inputs],
        "output": [_tensor(one) for one in metadata.outputs],
        "parameters": {
            "belvedere_version": {"string_value": metadata.versions[0]},
            "belvedere_max_batch_size": {"string_value": str(max_batch_size)},
        },
    }


def _tensor(metadata: TensorMetadata) -> dict[str, Any]:
    kind = "STRING" if metadata.datatype == BYTES else metadata.datatype
    return {"name": metadata.name, "data_type": f"TYPE_{kind}", "dims": list(metadata.shape)}


def repository_index(models: Sequence[Model], *, ready: bool) -> list[dict[str, str]]:
    """Return the models with their states."""
    state = READY if ready else "UNAVAILABLE"
    return [{"name": model.name, "version": model.version, "state": state} for model in models]


def statistics(models: Sequence[Model]) -> dict[str, Any]:
    """Return the counters of some models. Versions are numbers there, as Triton's are: perf_analyzer reads nothing else."""
    return {
        "model_stats": [model.statistics.as_json(model.name, str(version_number(model.version))) for model in models]
    }


def message(kind: Any, fields: dict[str, Any]) -> Any:
    """Return a protobuf message with these fields."""
    return json_format.ParseDict(fields, kind())


def config_message(fields: dict[str, Any]) -> Any:
    """Return the ModelConfigResponse."""
    return message(pb.ModelConfigResponse, {"config": fields})


def no_shared_memory() -> V2Error:
    """Return the refusal of shared memory: a client on another machine, or behind the gateway, shares none with us."""
    return V2Error(Reason.UNIMPLEMENTED, "shared memory is not offered here; send the tensors in the request")
