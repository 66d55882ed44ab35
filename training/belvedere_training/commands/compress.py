"""`belvedere compress`: make a smaller or faster model of a good one, and measure both."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from belvedere_platform.cli.options import artifact_store, artifacts_option, output_option
from belvedere_platform.errors import InvalidInput

if TYPE_CHECKING:
    from belvedere_training.compression.measure import Measured

_WAYS = ("prune", "channels", "int8-dynamic", "int8-static", "int8-trained", "distil")


@click.command()
@click.argument("model")
@click.option("--data", "reference", required=True, metavar="REF", help="data set: a name, tag, digest or folder")
@click.option(
    "--way", "ways", multiple=True, required=True, type=click.Choice(_WAYS), help="may be given several times"
)
@click.option("--split", default=None, help="to measure recall on; the first one held out by default")
@click.option("--share", default=0.5, show_default=True, help="of weights (prune) or inner channels (channels) to drop")
@click.option("--pairs", type=click.IntRange(0), default=0, show_default=True, help="budget of training afterwards")
@click.option("--batch-size", type=click.IntRange(2), default=128, show_default=True)
@click.option("--learning-rate", type=float, default=3e-4, show_default=True)
@click.option("--student", default="nano", show_default=True, help="size of the model that distil teaches")
@click.option("--tag", default=None, help="publish the result under this tag (prune and distil, one --way)")
@output_option("table", "json")
@artifacts_option
def compress(
    model: str,
    reference: str,
    ways: tuple[Any, ...],
    split: str | None,
    tag: str | None,
    output: str,
    **given: Any,
) -> None:
    """Prune, quantize or distil the MODEL (a tag or digest), and compare size, latency and recall with the original."""
    from belvedere_training.commands.data import dataset_folder
    from belvedere_training.compression.publish import publish_compressed
    from belvedere_training.compression.run import PUBLISHED, CompressOptions, study
    from belvedere_training.model.files import load_artifact

    if tag is not None and (len(ways) != 1 or ways[0] not in PUBLISHED):
        raise InvalidInput(
            f"--tag publishes one of {' and '.join(PUBLISHED)}, and --way is {', '.join(ways)}: "
            "int8 and narrowed models live in engines (belvedere engine build)"
        )
    options = [CompressOptions(way=way, **given) for way in ways]
    for one in options:
        one.check()
    store = artifact_store()
    digest = store.resolve(model).digest
    found, models = study(load_artifact(store, digest), dataset_folder(reference), options, split=split)
    if tag is not None:
        publish_compressed(store, digest, models[ways[0]], found[-1], tag)
    click.echo(json.dumps([one.document() for one in found]) if output == "json" else _table(found))


def _table(found: list[Measured]) -> str:
    from belvedere_platform.cli.rendering import table

    names = list(found[0].recall)
    rows = [
        (
            one.name,
            f"{one.bytes / 1e6:.2f}",
            f"{one.packed_bytes / 1e6:.2f}",
            f"{one.image_ms:.1f}",
            f"{one.text_ms:.1f}",
            *(f"{one.recall[name]:.3f}" for name in names),
        )
        for one in found
    ]
    return table(("MODEL", "MB", "PACKED MB", "16 IMAGES MS", "16 TEXTS MS", *names), rows)
