"""`belvedere attribute`: say which places and words make a model think that a text belongs to a picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from belvedere_platform.cli.options import artifact_store, artifacts_option, output_option
from belvedere_training.commands.pairs import asked_pairs, pair_options

_METHODS = ("integrated-gradients", "lime", "kernel-shap", "gradient-shap")


@click.command()
@click.argument("model")
@pair_options
@click.option("--method", "methods", multiple=True, type=click.Choice(_METHODS), help="all four by default")
@click.option("--samples", type=click.IntRange(16), default=512, show_default=True, help="of LIME and SHAP")
@click.option(
    "--report", "folder", type=click.Path(path_type=Path, file_okay=False), help="write figures and JSON there"
)
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
    pairs = asked_pairs(loaded, image, text, reference, split, count)
    result = study(loaded, pairs, methods or _METHODS, samples=samples)
    if folder is not None:
        from belvedere_training.explanation.study import write_report

        for file in write_report(result, folder):
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
