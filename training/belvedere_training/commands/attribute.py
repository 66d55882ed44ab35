"""`belvedere attribute`: say which places and words make a model think that a text belongs to a picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from belvedere_platform.cli.options import artifact_store, artifacts_option, output_option
from belvedere_platform.errors import InvalidInput

if TYPE_CHECKING:
    from belvedere_training.model.files import LoadedModel

_METHODS = ("integrated-gradients", "lime", "kernel-shap", "gradient-shap")


@click.command()
@click.argument("model")
@click.option("--image", type=click.Path(path_type=Path, dir_okay=False), help="a picture, with --text")
@click.option("--text", help="a text, with --image")
@click.option("--data", "reference", metavar="REF", help="instead: pairs of this data set")
@click.option("--split", default=None, help="of the data set; the first one held out by default")
@click.option("--count", type=click.IntRange(1), default=16, show_default=True, help="pairs of the data set")
@click.option("--method", "methods", multiple=True, type=click.Choice(_METHODS), help="all four by default")
@click.option("--samples", type=click.IntRange(16), default=512, show_default=True, help="of LIME and SHAP")
@click.option("--report", "folder", type=click.Path(path_type=Path, file_okay=False), help="write figures there")
@output_option("table", "json")
@artifacts_option
def attribute(
    model: str,
    image: Path | None,
    text: str | None,
    reference: str | None,
    split: str | None,
    count: int,
    methods: tuple[Any, ...],
    samples: int,
    folder: Path | None,
    output: str,
) -> None:
    """Explain the MODEL's similarity of a picture and a text, or of pairs of a data set, and measure whether to believe it."""
    from belvedere_training.explanation.study import study
    from belvedere_training.model.files import load_artifact

    loaded = load_artifact(artifact_store(), model)
    pairs = _pairs(loaded, image, text, reference, split, count)
    result = study(loaded, pairs, methods or _METHODS, samples=samples)
    if folder is not None:
        from belvedere_training.explanation.study import write_figures

        for file in write_figures(result, folder):
            click.echo(f"wrote {file}", err=True)
    if output == "json":
        click.echo(json.dumps(result.document(), ensure_ascii=False))
        return
    from belvedere_platform.cli.rendering import table

    rows = [(method, *(f"{value:.4f}" for value in values.values())) for method, values in result.measures().items()]
    click.echo(table(("METHOD", *(name.upper() for name in next(iter(result.measures().values())))), rows))
    if len(result.pairs) == 1:
        for method, found in result.found.items():
            words = ", ".join(
                f"{word} {value:+.3f}" for word, value in zip(found[0].words, found[0].word_values, strict=True)
            )
            click.echo(f"{method}: {words}")


def _pairs(
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
