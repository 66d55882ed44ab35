"""`belvedere evaluate`: measure a model on a data set and write a report."""

from __future__ import annotations

import json
from pathlib import Path

import click

from belvedere_platform.cli.options import artifact_store, artifacts_option, output_option


@click.command()
@click.argument("model")
@click.option("--data", "reference", required=True, metavar="REF", help="data set: a name, tag, digest or folder")
@click.option("--split", "splits", multiple=True, help="only this split; all that are held out by default")
@click.option("--examples", type=click.IntRange(0, 100), default=6, show_default=True, help="hits and misses to show")
@click.option(
    "--report", "folder", type=click.Path(path_type=Path, file_okay=False), help="write JSON, HTML and figures there"
)
@output_option("table", "json")
@artifacts_option
def evaluate(
    model: str, reference: str, splits: tuple[str, ...], examples: int, folder: Path | None, output: str
) -> None:
    """Measure the MODEL (a tag or digest) on a data set: retrieval, classification, questions, robustness and more."""
    from belvedere_platform.cli.rendering import table
    from belvedere_training.commands.data import Clock, dataset_folder
    from belvedere_training.evaluation.run import evaluate_on
    from belvedere_training.model.files import load_artifact

    clock = Clock()
    store = artifact_store()
    digest = store.resolve(model).digest
    result = evaluate_on(
        load_artifact(store, digest), dataset_folder(reference), splits=splits, examples=examples, progress=clock.say
    )
    about = {"reference": model, "digest": digest}
    if folder is not None:
        from belvedere_training.evaluation.report import write_report

        for file in write_report(result, about, folder):
            clock.say(f"wrote {file}")
    if output == "json":
        click.echo(json.dumps(result.document(about), ensure_ascii=False))
        return
    click.echo(table(("MEASURE", "VALUE"), [(name, f"{value:.4f}") for name, value in sorted(result.metrics.items())]))
