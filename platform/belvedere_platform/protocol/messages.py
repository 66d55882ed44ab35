"""V2 requests, answers and metadata, apart from the way they travel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict

from belvedere_platform.protocol.errors import invalid
from belvedere_platform.protocol.tensors import BYTES, Tensor

Parameter = bool | int | float | str

EMBED_TEXT, EMBED_IMAGE = "embed_text", "embed_image"
MATCH, CAPTION, ANSWER, EXPLAIN = "match", "caption", "answer", "explain"
TEXT, IMAGE, EMBEDDING, SCORE, ATTRIBUTION = "TEXT", "IMAGE", "EMBEDDING", "SCORE", "ATTRIBUTION"
INPUT_OF = {EMBED_TEXT: TEXT, EMBED_IMAGE: IMAGE}
"""The input name of each embedding model; every one of them answers with EMBEDDING."""
FINAL_RESPONSE, WANTS_EMPTY_FINAL = "triton_final_response", "triton_enable_empty_final_response"
"""Parameters of Triton's decoupled models: of an answer, whether it is the last; of a request, whether an empty last one is sent."""


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
        return self.all_inputs((name,))[0]

    def all_inputs(self, names: Sequence[str]) -> tuple[Tensor, ...]:
        """Return exactly these inputs in this order; each must hold as many BYTES in one dimension as the others."""
        found = {tensor.name: tensor for tensor in self.inputs}
        if len(self.inputs) != len(names) or set(found) != set(names):
            given = ", ".join(f"'{tensor.name[:64]}'" for tensor in self.inputs[:8]) or "none"
            wanted = " and ".join(f"'{name}'" for name in names)
            many = "one input" if len(names) == 1 else f"{len(names)} inputs"
            raise invalid(f"model '{self.model_name}' takes {many}, {wanted}; given: {given}")
        ordered = tuple(found[name] for name in names)
        for tensor in ordered:
            if tensor.datatype != BYTES:
                raise invalid(f"input '{tensor.name}' has datatype {tensor.datatype}; it must be {BYTES}")
            if len(tensor.shape) != 1:
                raise invalid(f"input '{tensor.name}' has shape {list(tensor.shape)}; it must be [n]")
        if len({tensor.shape for tensor in ordered}) > 1:
            sizes = ", ".join(f"'{tensor.name}' has {tensor.shape[0]}" for tensor in ordered)
            raise invalid(f"inputs differ in length: {sizes}; send pairs")
        return ordered


@dataclass(frozen=True, kw_only=True)
class InferResponse:
    """An answer."""

    model_name: str
    model_version: str
    outputs: tuple[Tensor, ...]
    id: str = ""
    parameters: Mapping[str, Parameter] = field(default_factory=dict)

    @property
    def final(self) -> bool:
        """Whether no other answer to the same request follows."""
        return bool(self.parameters.get(FINAL_RESPONSE, True))

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
