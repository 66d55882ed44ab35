"""What a model is made of: towers, widths, and the sizes that have a name."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

from belvedere_platform.errors import InvalidInput


class _Settings(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)


class VisionConfig(_Settings):
    """A residual convolutional tower."""

    kind: Literal["conv"] = "conv"
    image_size: Annotated[int, Field(ge=16, le=512)] = 64
    stem_width: Annotated[int, Field(ge=8)] = 32
    widths: Annotated[tuple[int, ...], Field(min_length=1, max_length=4, description="one halving stage each")] = (
        48,
        96,
        192,
    )
    blocks: tuple[int, ...] = (1, 1, 1)
    pooled_width: Annotated[int, Field(ge=8)] = 192
    deepen: Annotated[
        int, Field(ge=0, description="extra wide residual blocks after the first stage, that add nothing when new")
    ] = 0

    @model_validator(mode="after")
    def _one_count_a_stage(self) -> Self:
        if len(self.blocks) != len(self.widths):
            raise ValueError(
                f"blocks has {len(self.blocks)} entries and widths has {len(self.widths)}; give one a stage"
            )
        if self.image_size % self.stride:
            raise ValueError(
                f"imageSize {self.image_size} must be a multiple of {self.stride}, the stride of the tower"
            )
        return self

    @property
    def stride(self) -> int:
        """Return how many pixels one token of the grid covers on each side."""
        return int(2 ** (len(self.widths) + 1))


class TextConfig(_Settings):
    """A small pre-norm transformer over subword tokens."""

    kind: Literal["transformer"] = "transformer"
    vocab_size: Annotated[int, Field(ge=300)] = 6000
    context_length: Annotated[int, Field(ge=4, le=512)] = 20
    width: Annotated[int, Field(ge=8)] = 192
    layers: Annotated[int, Field(ge=0)] = 2
    heads: Annotated[int, Field(ge=1)] = 4
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    deepen: Annotated[int, Field(ge=0, description="extra layers that add nothing when new")] = 0

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}")
        return self


class ModelConfig(_Settings):
    """A dual-stream model: one tower a modality and a shared space."""

    topology: Literal["dual"] = "dual"
    embed_dim: Annotated[int, Field(ge=8)] = 128
    vision: VisionConfig = VisionConfig()
    text: TextConfig = TextConfig()


SIZES: dict[str, ModelConfig] = {
    "nano": ModelConfig(),
    "small": ModelConfig(
        embed_dim=256,
        vision=VisionConfig(stem_width=48, widths=(96, 192, 384), blocks=(2, 2, 2), pooled_width=384),
        text=TextConfig(width=320, layers=4, heads=5, vocab_size=8000),
    ),
}


def sized(size: str) -> ModelConfig:
    """Return the configuration of a named size; InvalidInput says which sizes there are."""
    if size not in SIZES:
        raise InvalidInput(f"size is {size!r}; this recipe knows {' and '.join(SIZES)}")
    return SIZES[size]
