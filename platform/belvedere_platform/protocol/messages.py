"""V2 requests, answers and metadata, apart from the way they travel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict

from belvedere_platform.protocol.errors import invalid
from belvedere_platform.protocol.tensors import BYTES, Tensor

Parameter = bool | int | float | str

EMBED_TEXT, EMBED_IMAGE = "embed_text", "embed_image"
TEXT, IMAGE, EMBEDDING = "TEXT", "IMAGE", "EMBEDDING"
INPUT_OF = {EMBED_TEXT: TEXT, EMBED_IMAGE: IMAGE}
"""The input name of each V2 model; every one of them answers with EMBEDDING."""


@dataclass(frozen=True, kw_only=True)
class RequestedOutput:
    """An output the client asks for, and whether it wants it in binary form (None: as the request says)."""

    name: str
    binary: bool | None = None


@dataclass(frozen=True, kw_only=True)
class InferRequest:
    """A request for inference."""

    model_name: str
    inputs: tuple[Tensor, ...]
    model_version: str = ""
    id: str = ""
    outputs: tuple[RequestedOutput, ...] = ()
    parameters: Mapping[str, Parameter] = field(default_factory=dict)

    def input(self, name: str) -> Tensor:
        """Return the only input, which must have this name and hold BYTES of one dimension."""
        if len(self.inputs) != 1 or self.inputs[0].name != name:
            given = ", ".join(f"'{tensor.name[:64]}'" for tensor in self.inputs[:8]) or "none"
            raise invalid(f"model '{self.model_name}' takes one input, '{name}'; given: {given}")
        tensor = self.inputs[0]
        if tensor.datatype != BYTES:
            raise invalid(f"input '{name}' has datatype {tensor.datatype}; it must be {BYTES}")
        if len(tensor.shape) != 1:
            raise invalid(f"input '{name}' has shape {list(tensor.shape)}; it must be [n]")
        return tensor


@dataclass(frozen=True, kw_only=True)
class InferResponse:
    """An answer."""

    model_name: str
    model_version: str
    outputs: tuple[Tensor, ...]
    id: str = ""

    @property
    def rows(self) -> int:
        """Return how many inputs are answered."""
        return self.outputs[0].shape[0] if self.outputs and self.outputs[0].shape else 0

    def output(self, name: str) -> Tensor:
        """Return the output of this name."""
        for tensor in self.outputs:
            if tensor.name == name:
                return tensor
        raise invalid(f"the answer of model '{self.model_name}' has no output '{name}'")


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True)


class ServerMetadata(_Message):
    """What `GET /v2` answers."""

    name: str
    version: str
    extensions: tuple[str, ...] = ()


class TensorMetadata(_Message):
    """Name, datatype and shape of an input or output; -1 is a size the client chooses."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class ModelMetadata(_Message):
    """What `GET /v2/models/NAME` answers."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]


def embedding_metadata(model: str, version: str, platform: str, dimension: int) -> ModelMetadata:
    """Return the metadata of one of the embedding models."""
    return ModelMetadata(
        name=model,
        versions=(version,),
        platform=platform,
        inputs=(TensorMetadata(name=INPUT_OF[model], datatype=BYTES, shape=(-1,)),),
        outputs=(TensorMetadata(name=EMBEDDING, datatype="FP32", shape=(-1, dimension)),),
    )
