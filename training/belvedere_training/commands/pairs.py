"""Which pictures and texts a command explains: one pair that is given, or pairs of a data set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from belvedere_platform.errors import InvalidInput

if TYPE_CHECKING:
    from belvedere_training.model.files import LoadedModel

_OPTIONS = (
    click.option("--image", type=click.Path(path_type=Path, dir_okay=False), help="a picture, with --text"),
    click.option("--text", help="a text, with --image"),
    click.option("--data", "reference", metavar="REF", help="instead: pairs of this data set"),
    click.option("--split", default=None, help="of the data set; the first one held out by default"),
    click.option("--count", type=click.IntRange(1), default=16, show_default=True, help="pairs of the data set"),
)


def pair_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that name pairs, in this order."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def asked_pairs(
    loaded: LoadedModel,
    image: Path | None,
    text: str | None,
    reference: str | None,
    split: str | None,
    count: int,
) -> list[tuple[Any, str]]:
    """Return uint8 pictures with a text each."""
    from belvedere_training.explanation.study import pairs_of_split, picture_of

    if (image is not None and text is not None) == (reference is not None):
        raise InvalidInput("give either --image FILE with --text TEXT, or --data REF")
    if reference is None:
        assert image is not None
        assert text is not None
        return [(picture_of(image, loaded.model.config.vision.image_size), text)]
    from belvedere_training.commands.data import dataset_folder

    return pairs_of_split(dataset_folder(reference), split, count)
