"""What a run asks that does not go together, or not with its model: told before the first step."""

from __future__ import annotations

from collections.abc import Iterator

from belvedere_platform.errors import InvalidInput
from belvedere_training.config import RunConfig
from belvedere_training.model.config import ModelConfig, has_view
from belvedere_training.model.spatial import SHARES
from belvedere_training.objectives.multitask import any_asked, needs_words


def check_asked(config: RunConfig, shape: ModelConfig) -> None:
    """Raise InvalidInput for the first thing that cannot be had."""
    _check_coarse(config, shape)
    _check_resolution(config, shape)
    _check_texts(config)


def _check_coarse(config: RunConfig, shape: ModelConfig) -> None:
    """Raise InvalidInput where half the resolution is nothing that the vision tower can take."""
    share = config.optimization.coarse_share
    if share and (odd := _odd_half(shape)):
        raise InvalidInput(f"optimization.coarseShare is {share:g}: {odd}; leave it out")


def _odd_half(shape: ModelConfig) -> str:
    edge, stride = shape.vision.image_size, shape.vision.stride
    if edge % (2 * stride) == 0:
        return ""
    return (
        f"half of the {edge} pixels is no multiple of {stride}, the stride of the vision tower; "
        f"use pictures of a multiple of {2 * stride} pixels"
    )


def _check_resolution(config: RunConfig, shape: ModelConfig) -> None:
    """Raise InvalidInput where pictures of several resolutions do not go with what else is asked."""
    asked = config.optimization.resolution
    if asked == "Whole":
        return
    hindrances = [
        *_of_the_model(shape),
        *(_of_stages(config, shape) if asked == "Progressive" else _of_routing(config)),
    ]
    if hindrances:
        raise InvalidInput(f"optimization.resolution is {asked}, and {hindrances[0]}; or set it to Whole")


def _of_the_model(shape: ModelConfig) -> Iterator[str]:
    if shape.vision.kind != "vit":
        yield f"architecture.tower is {shape.vision.kind}, whose batch norm needs pictures of one size: use vit"
    if shape.topology in ("fusion", "hybrid") and shape.fusion.attend != "full":
        yield f"architecture.attend is {shape.fusion.attend}, which needs pictures of one grid: use full"
    if odd := _odd_half(shape):
        yield odd


def _of_routing(config: RunConfig) -> Iterator[str]:
    if config.optimization.coarse_share:
        yield f"optimization.coarseShare is {config.optimization.coarse_share:g}: leave it out"


def _of_stages(config: RunConfig, shape: ModelConfig) -> Iterator[str]:
    setting = config.optimization
    if setting.coarse_share > SHARES[0]:
        yield (
            f"optimization.coarseShare is {setting.coarse_share:g}: use {SHARES[0]:g} or less, before the view is learned"
        )
    if setting.unfreeze_every_pairs:
        yield (
            f"optimization.unfreezeEveryPairs is {setting.unfreeze_every_pairs}, while the stages decide what learns: "
            "set it to 0"
        )
    if not has_view(shape):
        yield "the model of initializeFrom.modelVersion has no learned view: train from scratch"


def _check_texts(config: RunConfig) -> None:
    """Raise InvalidInput where contrast has one text and several are given, or nothing learns from those that are said."""
    count, wanted = config.optimization.texts_per_picture, config.objectives
    if count > 1 and (any_asked(wanted) or wanted.distillation or wanted.queue_size):
        raise InvalidInput(
            f"optimization.textsPerPicture is {count}, and objectives has more than contrast, which is learned from one text "
            "a picture: leave textsPerPicture out, or all of objectives"
        )
    several = config.optimization.questions_per_picture
    if several > 1 and not needs_words(wanted):
        raise InvalidInput(
            f"optimization.questionsPerPicture is {several}, and neither objectives.lm nor objectives.mlm is asked, which learn "
            "words from them: set one of them above 0, or leave questionsPerPicture out"
        )
