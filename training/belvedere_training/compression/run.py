"""Compress a model in one of the known ways, and measure it beside what it was made of."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from belvedere_platform.errors import InvalidInput
from belvedere_training.compression.distill import distillation, student_of
from belvedere_training.compression.int8 import prepared_for_training, to_int8, trained_to_int8
from belvedere_training.compression.measure import Measured, compare
from belvedere_training.compression.prune import Masks, without_channels
from belvedere_training.compression.tune import tune
from belvedere_training.data.corpus import Corpus, held_out_splits, load_split
from belvedere_training.data.loader import Batch, Loader
from belvedere_training.model.config import sized
from belvedere_training.model.dual import DualStream
from belvedere_training.model.files import LoadedModel

Way = Literal["prune", "channels", "int8-dynamic", "int8-static", "int8-trained", "distil"]
WAYS: tuple[Way, ...] = get_args(Way)
PUBLISHED: tuple[Way, ...] = ("prune", "distil")
"""What can be published: the others are no longer the model that its configuration describes."""
_CALIBRATION_BATCHES = 8


@dataclass(frozen=True, kw_only=True)
class CompressOptions:
    """How to compress. `pairs` is the budget of the training that prune, channels, int8-trained and distil make."""

    way: Way
    share: float = 0.5
    pairs: int = 0
    batch_size: int = 128
    learning_rate: float = 3e-4
    student: str = "nano"
    seed: int = 0

    def check(self) -> None:
        """Raise InvalidInput for a value that makes no sense."""
        if self.pairs and self.pairs < self.batch_size:
            raise InvalidInput(
                f"--pairs is {self.pairs}, less than a batch of {self.batch_size}: no step could be made"
            )
        if self.way in ("int8-trained", "distil") and not self.pairs:
            raise InvalidInput(f"--pairs is 0, and {self.way} is made by training: give a budget, for example 20000")


def compressed(loaded: LoadedModel, corpus: Corpus, options: CompressOptions) -> DualStream:
    """Return what is made of the model; the corpus is what it trains or measures on."""
    options.check()
    model = copy.deepcopy(loaded.model)
    if options.way == "prune":
        masks = Masks(model, options.share)
        masks.apply()
        tuned(model, loaded, corpus, options, after_step=masks.apply)
    elif options.way == "channels":
        model = without_channels(model, options.share)  # type: ignore[assignment]
        tuned(model, loaded, corpus, options)
    elif options.way == "int8-dynamic":
        return to_int8(model, "dynamic")
    elif options.way == "int8-static":
        inputs = batches(loaded, corpus, options, _CALIBRATION_BATCHES)
        return to_int8(model, "static", ((batch.pixels_B3SS, batch.tokens_BT) for batch in inputs))
    elif options.way == "int8-trained":
        rounding = prepared_for_training(model)
        tuned(rounding, loaded, corpus, options)
        return trained_to_int8(rounding)
    else:
        shape = sized(options.student).model_copy(update={"normalization": model.config.normalization})
        student = student_of(shape, loaded.tokenizer, options.seed)
        tune(
            student,
            batches(loaded, corpus, options, options.pairs // options.batch_size),
            num_batches=options.pairs // options.batch_size,
            learning_rate=options.learning_rate,
            loss=distillation(model),
        )
        return student
    return model


def tuned(
    model: DualStream,
    loaded: LoadedModel,
    corpus: Corpus,
    options: CompressOptions,
    after_step: Callable[[], None] = lambda: None,
) -> None:
    """Train for the budget, if there is one."""
    num_batches = options.pairs // options.batch_size
    if num_batches:
        tune(
            model,
            batches(loaded, corpus, options, num_batches),
            num_batches=num_batches,
            learning_rate=options.learning_rate,
            after_step=after_step,
        )


def batches(loaded: LoadedModel, corpus: Corpus, options: CompressOptions, count: int) -> Iterator[Batch]:
    """Yield so many batches of the corpus, as the loaded model takes them."""
    size = options.batch_size
    loader = Loader(
        corpus,
        loaded.tokenizer,
        seed=options.seed,
        batch_size=size,
        rows=slice(0, size),
        normalization=loaded.model.config.normalization,
    )
    try:
        for number in range(count):
            yield loader.batch(number * size)
    finally:
        loader.close()


def study(
    loaded: LoadedModel, folder: Path, ways: Sequence[CompressOptions], *, split: str | None = None
) -> tuple[list[Measured], dict[str, DualStream]]:
    """Compress in each way and measure all beside the original, on what is held out."""
    train = load_split(folder, "train")
    check = load_split(folder, split or next(iter(held_out_splits(folder)), "train"))
    models: dict[str, DualStream] = {"original": loaded.model}
    models |= {str(options.way): compressed(loaded, train, options) for options in ways}
    return compare(models, loaded.tokenizer, check), models
