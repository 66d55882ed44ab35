"""`belvedere ground`: say where in a picture the thing is that a text names."""

from __future__ import annotations

import json
from pathlib import Path

import click

from belvedere_platform.cli.options import artifact_store, artifacts_option, output_option
from belvedere_training.commands.pairs import asked_pairs, pair_options


@click.command()
@click.argument("model")
@pair_options
@click.option("--games", type=click.IntRange(1), default=200, show_default=True, help="of pointing, with --data")
@click.option(
    "--report", "folder", type=click.Path(path_type=Path, file_okay=False), help="write the map there, with --image"
)
@output_option("table", "json")
@artifacts_option
def ground(
    model: str,
    image: Path | None,
    text: str | None,
    reference: str | None,
    split: str | None,
    count: int,
    games: int,
    folder: Path | None,
    output: str,
) -> None:
    """Show where the MODEL sees in a picture what a text names; with --data, how often it points at the right one of four."""
    from belvedere_platform.cli.rendering import table
    from belvedere_training.explanation.grounding import ground as find
    from belvedere_training.explanation.grounding import pointing_game
    from belvedere_training.explanation.score import pair_of
    from belvedere_training.model.files import load_artifact

    loaded = load_artifact(artifact_store(), model)
    pairs = asked_pairs(loaded, image, text, reference, split, count)
    if reference is not None:
        played = pointing_game(loaded, pairs, games=games)
        if output == "json":
            click.echo(json.dumps({"games": played.games, "hitRate": played.hit_rate, "inside": played.inside}))
        else:
            row = (str(played.games), f"{played.hit_rate:.4f}", f"{played.inside:.4f}", "0.2500")
            click.echo(table(("GAMES", "HIT RATE", "INSIDE", "CHANCE"), [row]))
        return
    pixels_3SS, words = pairs[0]
    map_RC = find(loaded.model, pair_of(loaded.model, loaded.tokenizer, pixels_3SS, words))
    if folder is not None:
        from belvedere_training.explanation.plots import grounding_figure

        folder.mkdir(parents=True, exist_ok=True)
        (folder / "ground.png").write_bytes(grounding_figure(pixels_3SS, map_RC, words))
        click.echo(f"wrote {folder / 'ground.png'}", err=True)
    if output == "json":
        click.echo(json.dumps({"text": words, "map": map_RC.tolist()}, ensure_ascii=False))
        return
    at, num_columns = int(map_RC.argmax()), map_RC.shape[1]
    where = f"row {at // num_columns + 1} of {map_RC.shape[0]}, column {at % num_columns + 1} of {num_columns}"
    click.echo(f"{words}: {where if map_RC.max() > 0 else 'nowhere'}")
