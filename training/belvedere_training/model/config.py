"""What a model is made of: towers, fusion, topology, and the sizes that have a name."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic.alias_generators import to_camel

from belvedere_platform.errors import InvalidInput

Topology = Literal["dual", "fusion", "unified", "hybrid"]
Attend = Literal["full", "pooled", "top"]
RESOLUTIONS = (112, 160, 224)


class Settings(BaseModel):
    """Unknown keys are refused; keys are written in camelCase or as in Python."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)


class ConvConfig(Settings):
    """A residual convolutional tower that is cheap on CPU cores."""

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
        check_multiple(self.image_size, self.stride, "the stride of the tower")
        return self

    @property
    def stride(self) -> int:
        """Return how many pixels one token of the grid covers on each side."""
        return int(2 ** (len(self.widths) + 1))


class VitConfig(Settings):
    """A vision transformer. image_size is the native resolution; others are interpolated to."""

    kind: Literal["vit"] = "vit"
    image_size: Annotated[int, Field(ge=16, le=1024)] = 224
    patch_size: Annotated[int, Field(ge=2, le=64)] = 16
    hidden_size: Annotated[int, Field(ge=8)] = 768
    num_layers: Annotated[int, Field(ge=1)] = 12
    num_heads: Annotated[int, Field(ge=1)] = 12
    pooling: Annotated[
        Literal["attention", "class"],
        Field(description="a learned query over all tokens, or a class token as in CLIP"),
    ] = "attention"
    view: Annotated[bool, Field(description="a learned view of the picture before it is cut into patches")] = False

    @model_validator(mode="after")
    def _patches_and_heads_divide(self) -> Self:
        if self.image_size % self.patch_size:
            raise ValueError(
                f"imageSize {self.image_size} is no multiple of patchSize {self.patch_size}; "
                f"with this patch {_near(self.image_size, self.patch_size)} work, and of the routed resolutions "
                f"{_routed(self.patch_size)}; patchSize 16 divides {', '.join(map(str, RESOLUTIONS))}"
            )
        check_heads(self.hidden_size, self.num_heads)
        return self

    @property
    def stride(self) -> int:
        """Return how many pixels one token covers on each side."""
        return self.patch_size

    @property
    def grid(self) -> int:
        """Return how many patches stand on each side of a picture of the native resolution."""
        return self.image_size // self.patch_size


class ResNetConfig(Settings):
    """A bottleneck residual network; its last stage is 256 * 2^(stages - 1) wide (2048 with four stages)."""

    kind: Literal["resnet"] = "resnet"
    image_size: Annotated[int, Field(ge=16, le=1024)] = 224
    layers: Annotated[tuple[int, ...], Field(min_length=1, max_length=4, description="blocks of each stage")] = (
        3,
        4,
        6,
        3,
    )
    output_dim: Annotated[int, Field(ge=8)] = 768

    @model_validator(mode="after")
    def _stride_divides(self) -> Self:
        check_multiple(self.image_size, self.stride, "the stride of the tower")
        return self

    @property
    def stride(self) -> int:
        """Return how many pixels one token of the grid covers on each side."""
        return int(2 ** (len(self.layers) + 1))


def check_multiple(image_size: int, stride: int, what: str) -> None:
    """Raise ValueError where the stride does not divide the resolution, with resolutions that work."""
    if image_size % stride:
        raise ValueError(
            f"imageSize {image_size} must be a multiple of {stride}, {what}: {_near(image_size, stride)} work"
        )


def _near(size: int, step: int) -> str:
    """Return the multiples of step on both sides of size, as words."""
    below = size // step * step
    return f"{below} and {below + step}" if below else f"{step} and {2 * step}"


def _routed(patch_size: int) -> str:
    return ", ".join(str(size) for size in RESOLUTIONS if size % patch_size == 0) or "none"


def check_heads(hidden_size: int, num_heads: int) -> None:
    """Raise ValueError where the width cannot be shared among the heads."""
    if hidden_size % num_heads:
        raise ValueError(f"hiddenSize {hidden_size} must be a multiple of numHeads {num_heads}")


def _kind(vision: Any) -> str:
    kind = vision.get("kind", "conv") if isinstance(vision, dict) else getattr(vision, "kind", "conv")
    return str(kind)


VisionConfig = Annotated[
    Annotated[ConvConfig, Tag("conv")] | Annotated[VitConfig, Tag("vit")] | Annotated[ResNetConfig, Tag("resnet")],
    Discriminator(_kind),
]


class TextConfig(Settings):
    """A pre-norm transformer over subword tokens."""

    kind: Literal["transformer"] = "transformer"
    vocab_size: Annotated[int, Field(ge=258, description="256 bytes, padding and start are part of every one")] = 6000
    max_length: Annotated[int, Field(ge=4, le=512)] = 20
    hidden_size: Annotated[int, Field(ge=8)] = 192
    num_layers: Annotated[int, Field(ge=0)] = 2
    num_heads: Annotated[int, Field(ge=1)] = 4
    causal: Annotated[
        bool,
        Field(description="each token sees those before it and the last one is pooled, so one pass serves ITC and LM"),
    ] = False
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    deepen: Annotated[int, Field(ge=0, description="extra layers that add nothing when new")] = 0

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        check_heads(self.hidden_size, self.num_heads)
        return self


class FusionConfig(Settings):
    """The blocks above the towers, as wide as the text tower. None: the model can only be dual."""

    num_layers: Annotated[int, Field(ge=0)] = 0
    num_heads: Annotated[int, Field(ge=1)] = 4
    attend: Annotated[
        Attend, Field(description="which image keys text looks at: all, 2x2 means, or the best quarter of blocks")
    ] = "full"
    itm_head: Annotated[Literal["bce", "ce"], Field(description="one logit, or one for each class")] = "bce"


class PixelConfig(Settings):
    """The light decoder of masked patches. None: no masked image modelling."""

    num_layers: Annotated[int, Field(ge=0)] = 0
    hidden_size: Annotated[int, Field(ge=8)] = 128
    num_heads: Annotated[int, Field(ge=1)] = 4


class PartsConfig(Settings):
    """The parts that a picture's embedding is split into, one shared and one for each attribute. None: it is not split."""

    attributes: Annotated[dict[str, tuple[str, ...]], Field(description="values of each attribute, in order")] = {}
    width: Annotated[int, Field(ge=2)] = 32
    gradient_limit: Annotated[float, Field(gt=0, description="of each embedding, as the parts move it")] = 1.0


_Channels = tuple[float, float, float]
_Deviations = tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]


class Normalization(Settings):
    """Mean and deviation of each channel, of pixels from 0 to 1, by which a picture is normalised."""

    mean: _Channels = (0.5, 0.5, 0.5)
    std: _Deviations = (0.5, 0.5, 0.5)


HALF = Normalization()
NORMALIZATIONS = {
    "half": HALF,
    "imagenet": Normalization(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    "clip": Normalization(mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711)),
}
"""By the name that a configuration gives; those of CLIP are Radford et al. 2021's own data's."""


class ModelConfig(Settings):
    """One model: a tower a modality, a shared space, and how far the modalities see each other."""

    topology: Topology = "dual"
    embed_dim: Annotated[int, Field(ge=8)] = 128
    vision: VisionConfig = ConvConfig()
    text: TextConfig = TextConfig()
    fusion: FusionConfig = FusionConfig()
    pixels: PixelConfig = PixelConfig()
    parts: PartsConfig = PartsConfig()
    normalization: Annotated[
        Normalization, Field(description="of pictures, here, in evaluation and by every server")
    ] = HALF

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.topology != "dual" and not self.fusion.num_layers:
            raise ValueError(f"topology {self.topology} needs fusion.numLayers of 1 or more; it is 0")
        if self.topology == "hybrid" and self.fusion.num_layers < 2:
            raise ValueError("topology hybrid needs fusion.numLayers of 2 or more: some cross, some concatenate")
        if self.fusion.num_layers:
            check_heads(self.text.hidden_size, self.fusion.num_heads)
        if self.pixels.num_layers and self.vision.kind != "vit":
            raise ValueError(
                f"pixels.numLayers needs vision.kind vit, whose tokens are patches; it is {self.vision.kind}"
            )
        return self


def has_view(config: ModelConfig) -> bool:
    """Return whether the vision tower looks at a learned view of the picture."""
    return isinstance(config.vision, VitConfig) and config.vision.view


def _vit(size: int, patch: int, hidden: int, layers: int, heads: int) -> VitConfig:
    return VitConfig(image_size=size, patch_size=patch, hidden_size=hidden, num_layers=layers, num_heads=heads)


def _wide_text(hidden: int, layers: int, heads: int) -> TextConfig:
    return TextConfig(
        vocab_size=49408, max_length=77, hidden_size=hidden, num_layers=layers, num_heads=heads, causal=True
    )


SIZES: dict[str, ModelConfig] = {
    "nano": ModelConfig(),
    "small": ModelConfig(
        embed_dim=256,
        vision=ConvConfig(stem_width=48, widths=(96, 192, 384), blocks=(2, 2, 2), pooled_width=384),
        text=TextConfig(hidden_size=320, num_layers=4, num_heads=5, vocab_size=8000),
    ),
    "base": ModelConfig(
        topology="fusion",
        embed_dim=512,
        vision=_vit(224, 16, 768, 12, 12),
        text=_wide_text(768, 6, 12),
        fusion=FusionConfig(num_layers=6, num_heads=12),
        pixels=PixelConfig(num_layers=2, hidden_size=384, num_heads=6),
    ),
    "large": ModelConfig(
        topology="fusion",
        embed_dim=768,
        vision=_vit(224, 16, 1024, 24, 16),
        text=_wide_text(1024, 12, 16),
        fusion=FusionConfig(num_layers=6, num_heads=16),
        pixels=PixelConfig(num_layers=4, hidden_size=512, num_heads=8),
    ),
}
TOWERS: dict[str, dict[str, ConvConfig | VitConfig | ResNetConfig]] = {
    "nano": {"vit": _vit(64, 8, 128, 4, 4), "resnet": ResNetConfig(image_size=64, layers=(1, 1, 1), output_dim=192)},
    "small": {
        "vit": _vit(64, 8, 320, 8, 5),
        "resnet": ResNetConfig(image_size=64, layers=(2, 2, 2, 2), output_dim=384),
    },
    "base": {"resnet": ResNetConfig(output_dim=768)},
    "large": {"resnet": ResNetConfig(layers=(3, 4, 23, 3), output_dim=1024)},
}
"""Towers of each size other than its own."""
_FUSION_LAYERS = {"nano": 2, "small": 4}


def sized(
    size: str, *, topology: Topology | None = None, tower: str | None = None, attend: Attend | None = None
) -> ModelConfig:
    """Return a named size, with another topology, vision tower or attention where asked; InvalidInput says which there are."""
    if size not in SIZES:
        raise InvalidInput(f"size is {size!r}; sizes are {', '.join(SIZES)}")
    config = SIZES[size]
    changes: dict[str, Any] = {}
    if tower is not None and tower != config.vision.kind:
        if tower not in TOWERS[size]:
            known = ", ".join([config.vision.kind, *TOWERS[size]])
            raise InvalidInput(f"tower is {tower!r}; size {size} has {known}")
        changes["vision"] = TOWERS[size][tower]
        if config.pixels.num_layers:
            changes["pixels"] = PixelConfig()
    if topology is not None:
        changes["topology"] = topology
        if topology != "dual" and not config.fusion.num_layers:
            changes["fusion"] = FusionConfig(num_layers=_FUSION_LAYERS[size], num_heads=config.text.num_heads)
    if attend is not None:
        changes["fusion"] = changes.get("fusion", config.fusion).model_copy(update={"attend": attend})
    return ModelConfig.model_validate({**dict(config), **changes}) if changes else config


_OLD_TEXT_KEYS = {"contextLength": "maxLength", "width": "hiddenSize", "layers": "numLayers", "heads": "numHeads"}


def migrated(document: dict[str, Any]) -> dict[str, Any]:
    """Return the document of a model.json with the names that were used before 0.2 replaced by today's."""
    text = {_OLD_TEXT_KEYS.get(name, name): value for name, value in document.get("text", {}).items()}
    return {**document, "text": text}
