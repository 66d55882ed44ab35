"""What a decoder owes, how much it keeps of each token, and the ONNX programs of a model's heads."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Protocol

import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from belvedere_platform.errors import CorruptData

# R sequences, T new tokens, P past tokens, M image keys, L and F layers, D width, V vocabulary

Array = npt.NDArray[Any]
HEADS_FILE = "heads.json"
ENCODE_IMAGE, MATCH_PROGRAM, DECODE_STATE, DECODE_STEP = "encode_image", "match", "decode_state", "decode_step"
INPUTS: dict[str, tuple[str, ...]] = {
    ENCODE_IMAGE: ("pixels",),
    MATCH_PROGRAM: ("features", "tokens"),
    DECODE_STATE: ("features",),
    DECODE_STEP: ("tokens", "counts", "starts", "past", "picture"),
}
OUTPUTS: dict[str, tuple[str, ...]] = {
    ENCODE_IMAGE: ("features",),
    MATCH_PROGRAM: ("score",),
    DECODE_STATE: ("picture",),
    DECODE_STEP: ("logits", "fresh"),
}


class _Part(BaseModel):
    # Training may say more than serving needs.
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True, extra="ignore")


class Geometry(_Part):
    """How much a decoder keeps of each token and of each picture, and its special tokens."""

    layers: Annotated[int, Field(ge=1)]
    width: Annotated[int, Field(ge=1)]
    heads: Annotated[int, Field(ge=1)]
    max_length: Annotated[int, Field(ge=2)]
    pad_id: int
    start_id: int
    end_id: int
    picture: tuple[int, ...]


class Heads(_Part):
    """`heads.json` of a model: which heads it has. A model without the file has none."""

    features: tuple[int, ...] = ()
    match: bool = False
    decoder: Geometry | None = None

    @classmethod
    def read(cls, folder: Path) -> Heads:
        """Return what the file in a folder says."""
        path = folder / HEADS_FILE
        if not path.exists():
            return cls()
        try:
            return cls.model_validate(json.loads(path.read_bytes()))
        except (ValidationError, ValueError) as error:
            raise CorruptData(f"{HEADS_FILE} does not say which heads there are: {error}; publish again") from error

    @property
    def programs(self) -> tuple[str, ...]:
        """Return the programs that these heads need."""
        needed = [ENCODE_IMAGE] if self.match or self.decoder else []
        return tuple(needed + [MATCH_PROGRAM] * self.match + [DECODE_STATE, DECODE_STEP] * (self.decoder is not None))


class Decoder(Protocol):
    """Computes steps. Stateless: what it has to remember is given back to it."""

    @property
    def geometry(self) -> Geometry:
        """Return how much is kept."""
        ...

    def picture(self, features: Array) -> Array:
        """Return what pictures leave for every text, [R, M, F, 2, D]."""
        ...

    def step(self, tokens: Array, counts: Array, starts: Array, past: Array, picture: Array) -> tuple[Array, Array]:
        """Return logits [R, V] of each next token, and what the new tokens leave, [R, T, L, 2, D]."""
        ...


class HeadPrograms:
    """The heads of an engine: each program by its name."""

    def __init__(self, heads: Heads, run: Callable[[str, Mapping[str, Array]], tuple[Array, ...]]) -> None:
        """`run`: a program's name and its inputs in, its outputs out."""
        self.heads = heads
        self._run = run

    @property
    def geometry(self) -> Geometry:
        """Return how much the decoder keeps."""
        assert self.heads.decoder is not None, "asked of a model that cannot write"
        return self.heads.decoder

    def encode(self, pixels: Array) -> Array:
        """Return the features [n, N, D] of pictures."""
        return self._run(ENCODE_IMAGE, {"pixels": pixels})[0]

    def match(self, features: Array, tokens: Array) -> Array:
        """Return the probability [n] that each picture and text belong together."""
        return self._run(MATCH_PROGRAM, {"features": features, "tokens": tokens})[0]

    def picture(self, features: Array) -> Array:
        """Return what pictures leave for every text."""
        return self._run(DECODE_STATE, {"features": features})[0]

    def step(self, tokens: Array, counts: Array, starts: Array, past: Array, picture: Array) -> tuple[Array, Array]:
        """Return logits and what the new tokens leave."""
        given = {"tokens": tokens, "counts": counts, "starts": starts, "past": past, "picture": picture}
        logits, fresh = self._run(DECODE_STEP, given)
        return logits, fresh


def onnx_heads(folder: Path, *, threads: int = 1) -> HeadPrograms | None:
    """Return the heads of the engine in a folder, run by ONNX Runtime; None where it has none."""
    heads = Heads.read(folder)
    if not heads.programs:
        return None
    return onnx_programs(heads, {name: folder / f"{name}.onnx" for name in heads.programs}, threads=threads)


def onnx_programs(heads: Heads, files: Mapping[str, Path], *, threads: int = 1) -> HeadPrograms:
    """Return heads whose programs are in these files, run by ONNX Runtime."""
    from belvedere_serving.engines.runtime import onnx_session

    if missing := [name for name, path in files.items() if not path.is_file()]:
        raise CorruptData(f"the engine lacks {', '.join(missing)}; build it again with `belvedere engine build`")
    sessions = {name: onnx_session(path, threads=threads) for name, path in files.items()}
    return HeadPrograms(heads, lambda name, arrays: tuple(sessions[name].run(OUTPUTS[name], dict(arrays))))
