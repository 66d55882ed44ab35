"""`belvedere data`: build data sets as artifacts, look at them, check them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from belvedere_platform.cli.options import artifact_store, artifacts_option, output_option

if TYPE_CHECKING:
    from belvedere_training.data.assemble import AssembleOptions, Step
    from belvedere_training.data.rows import Row

Command = TypeVar("Command", bound=Callable[..., Any])
_SAY_EVERY_SECONDS = 1.0


@click.group()
def data() -> None:
    """Build data sets, look at them and check them."""


@data.group()
def build() -> None:
    """Make a data set and push it. A build that was broken off goes on where it stopped."""


class Clock:
    """Says on standard error what goes on, with the time since the start."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self._said = float("-inf")

    def say(self, message: str) -> None:
        """Write one line."""
        click.echo(f"[{time.monotonic() - self.started:6.1f} s] {message}", err=True)

    def step(self, step: Step) -> None:
        """Write how far a build is."""
        done = "kept from before" if step.resumed else "written"
        rate = step.num_done / max(time.monotonic() - self.started, 1e-9)
        self.say(
            f"{step.file} {done}: {step.num_done}/{step.num_rows} pictures, {step.num_skipped} skipped, {rate:.0f} a second"
        )


@contextmanager
def resumable(clock: Clock) -> Iterator[None]:
    """Say that nothing is lost when the user breaks off."""
    try:
        yield
    except KeyboardInterrupt:
        clock.say("interrupted: what is whole is kept, and the same command goes on from there")
        raise


def source_options(command: Command) -> Command:
    """Add what all sources of one's own pictures share."""
    for option in reversed(
        (
            click.option("--name", required=True, help="name of the data set"),
            click.option("--licence", required=True, help="SPDX name of the pictures' licence, where a row names none"),
            click.option("--author", default="", help="who made the pictures"),
            click.option("--size", default=64, show_default=True, help="edge of the pictures in pixels"),
            click.option("--language", default="en", show_default=True, help="of captions that do not say theirs"),
            click.option(
                "--held-out", default=0.1, show_default=True, help="share kept from training, where no split is given"
            ),
            click.option(
                "--max-corrupt", default=0.01, show_default=True, help="share of pictures that may be skipped"
            ),
            click.option(
                "--workers", type=click.IntRange(1), default=None, help="threads; the number of cores by default"
            ),
            click.option("--output-tag", default=None, help="tag of the artifact; datasets/NAME by default"),
            output_option("table", "json", default="json"),
            artifacts_option,
        )
    ):
        command = option(command)
    return command


def _options(given: dict[str, Any]) -> AssembleOptions:
    from belvedere_training.data.assemble import AssembleOptions

    options = AssembleOptions(
        name=given["name"],
        licence=given["licence"],
        author=given["author"],
        size=given["size"],
        held_out=given["held_out"],
        max_corrupt=given["max_corrupt"],
        workers=given["workers"] or os.cpu_count() or 1,
    )
    options.check()
    return options


def _assemble(rows: list[Row], options: AssembleOptions, tag: str | None, output: str, clock: Clock) -> None:
    """Build what the rows say, or find it in the cache, and push it."""
    from belvedere_training.data.assemble import assemble, build_key
    from belvedere_training.data.packages import cache_directory

    folder = cache_directory() / "datasets" / f"{options.name}-{build_key(rows, options)[:16]}"
    if (folder / "manifest.json").is_file():
        clock.say(f"built before from the same files and options: {folder}")
    else:
        with resumable(clock):
            assemble(rows, options, folder, clock.step)
    _push(folder, tag or f"datasets/{options.name}", output, clock)


def _push(folder: Path, tag: str, output: str, clock: Clock) -> None:
    from belvedere_platform.cli.rendering import table
    from belvedere_training.data.corpus import read_manifest
    from belvedere_training.data.manifest import push

    descriptor = push(folder, artifact_store(), tag)
    manifest = read_manifest(folder)
    for sentence in manifest.get("skipped", ())[:8]:
        clock.say(f"skipped {sentence}")
    counts = {split: part["samples"] for split, part in manifest["splits"].items()}
    if output == "table":
        click.echo(table(("SPLIT", "SAMPLES"), [(split, str(count)) for split, count in counts.items()]))
        click.echo(f"{descriptor.digest} is {tag}")
        return
    document = {
        "tag": tag,
        "digest": descriptor.digest,
        "contentDigest": manifest["digest"],
        "samples": counts,
        "skipped": len(manifest.get("skipped", ())),
    }
    click.echo(json.dumps(document))


@build.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--captions",
    "captions_from",
    type=click.Choice(["beside", "file-name", "folder-name"]),
    default="beside",
    show_default=True,
    help="NAME.txt and NAME.LANG.txt beside each picture, or its own or its folder's name",
)
@source_options
def folder(path: Path, captions_from: Any, output_tag: str | None, output: str, **given: Any) -> None:
    """Build from a folder of pictures with captions."""
    from belvedere_training.data.rows import from_folder

    clock = Clock()
    options = _options(given)
    _assemble(
        from_folder(path, captions_from=captions_from, language=given["language"]), options, output_tag, output, clock
    )


def column_options(command: Command) -> Command:
    """Add the names of the fields that hold pictures and captions."""
    command = click.option("--caption-column", default="caption", show_default=True, help="CAPTION or CAPTION_LANG")(
        command
    )
    return click.option("--image-column", default="image", show_default=True, help="path of the picture")(command)


@build.command()
@click.argument("path", type=click.Path(path_type=Path))
@column_options
@source_options
def csv(path: Path, image_column: str, caption_column: str, output_tag: str | None, output: str, **given: Any) -> None:
    """Build from a CSV with a picture and captions a line."""
    from belvedere_training.data.rows import from_csv

    clock = Clock()
    options = _options(given)
    rows = from_csv(path, image=image_column, caption=caption_column, language=given["language"])
    _assemble(rows, options, output_tag, output, clock)


@build.command()
@click.argument("path", type=click.Path(path_type=Path))
@column_options
@source_options
def jsonl(
    path: Path, image_column: str, caption_column: str, output_tag: str | None, output: str, **given: Any
) -> None:
    """Build from a file of JSON lines with a picture and captions each."""
    from belvedere_training.data.rows import from_jsonl

    clock = Clock()
    options = _options(given)
    rows = from_jsonl(path, image=image_column, caption=caption_column, language=given["language"])
    _assemble(rows, options, output_tag, output, clock)


@build.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--caption-column", default="caption", show_default=True, help="key of the caption in KEY.json")
@source_options
def webdataset(path: Path, caption_column: str, output_tag: str | None, output: str, **given: Any) -> None:
    """Build from WebDataset shards: a .tar, or a folder of them."""
    from belvedere_training.data.rows import from_webdataset

    clock = Clock()
    options = _options(given)
    rows = from_webdataset(path, caption=caption_column, language=given["language"])
    _assemble(rows, options, output_tag, output, clock)


@build.command(name="easy-vqa")
@click.option("--output-tag", default="datasets/easy-vqa", show_default=True, help="tag of the artifact")
@output_option("table", "json", default="json")
@artifacts_option
def easy_vqa(output_tag: str, output: str) -> None:
    """Build the easy-VQA set: pictures of a shape with questions and answers."""
    from belvedere_training.data.assemble import AssembleOptions
    from belvedere_training.data.vqa import AUTHOR, LICENCE, easy_vqa_rows

    options = AssembleOptions(name="easy-vqa", licence=LICENCE, author=AUTHOR, workers=os.cpu_count() or 1)
    _assemble(easy_vqa_rows(), options, output_tag, output, Clock())


@build.command()
@click.option("--styles", default="", help="comma-separated names of drawing styles; all twelve by default")
@click.option("--size", default=64, show_default=True, help="edge of the pictures in pixels")
@click.option("--limit-concepts", type=int, default=None, help="only so many concepts, for a quick look")
@click.option(
    "--held-out",
    type=click.Choice(["families", "concepts"]),
    default="families",
    show_default=True,
    help="keep whole families of concepts from training, or single concepts whose variants stay in it",
)
@click.option("--output-tag", default="datasets/emoji", show_default=True, help="tag of the artifact")
@click.option("--workers", type=int, default=None, help="processes that render; the number of cores by default")
@output_option("table", "json", default="json")
@artifacts_option
def emoji(
    styles: str,
    size: int,
    limit_concepts: int | None,
    held_out: Literal["families", "concepts"],
    output_tag: str,
    workers: int | None,
    output: str,
) -> None:
    """Build the emoji data set: twelve vendors' drawings with English and Chinese names."""
    from belvedere_training.data.build import BuildOptions, build_key, needed_packages
    from belvedere_training.data.build import build as build_emoji
    from belvedere_training.data.packages import cache_directory, fetch

    clock = Clock()
    names = tuple(name.strip() for name in styles.split(",") if name.strip())
    options = BuildOptions(
        styles=names,
        size=size,
        limit_concepts=limit_concepts,
        held_out=held_out,
        workers=workers or os.cpu_count() or 1,
    )
    options.check()
    folder = cache_directory() / "datasets" / f"emoji-{build_key(options)[:16]}"
    if (folder / "manifest.json").is_file():
        clock.say(f"built before from the same packages and options: {folder}")
    else:
        with resumable(clock):
            tarballs = fetch(needed_packages(options), cache_directory(), clock.say)
            build_emoji(options, tarballs, folder, clock.say)
    _push(folder, output_tag, output, clock)


@build.command()
@click.option("--output-tag", default="datasets/shapes", show_default=True, help="tag of the artifact")
@output_option("table", "json", default="json")
@artifacts_option
def shapes(output_tag: str, output: str) -> None:
    """Build a tiny data set of drawn shapes; needs no download."""
    from belvedere_training.data.packages import cache_directory
    from belvedere_training.data.shapes import build_shapes

    _push(build_shapes(cache_directory() / "datasets" / "shapes"), output_tag, output, Clock())


def dataset_folder(reference: str) -> Path:
    """Return the folder of a data set: a folder itself, or the artifact of this name, tag or digest, pulled."""
    from belvedere_training.data.corpus import pull_dataset, resolve_dataset

    if (Path(reference) / "manifest.json").is_file():
        return Path(reference)
    store = artifact_store()
    return pull_dataset(store, resolve_dataset(store, reference))


@data.command()
@click.argument("reference")
@output_option("table", "json", "yaml")
@artifacts_option
def show(reference: str, output: str) -> None:
    """Show splits, languages, licences and a few captions of the data set REFERENCE: a name, tag, digest or folder."""
    from belvedere_platform.cli.rendering import emit, table
    from belvedere_training.data.verify import summary

    found = summary(dataset_folder(reference))
    if output != "table":
        emit(found, output)
        return
    for name in ("name", "digest", "size"):
        click.echo(f"{name}: {found[name]}")
    click.echo(f"languages: {', '.join(found['languages'])}\nlicences: {', '.join(found['licences'])}")
    rows = [
        (split, str(part["samples"]), str(part["shards"]), " · ".join(", ".join(c.values()) for c in part["captions"]))
        for split, part in found["splits"].items()
    ]
    click.echo(table(("SPLIT", "SAMPLES", "SHARDS", "FOR EXAMPLE"), rows))


@data.command(name="verify")
@click.argument("reference")
@output_option("table", "json", "yaml")
@artifacts_option
def verify_(reference: str, output: str) -> None:
    """Check every byte, picture and record of the data set REFERENCE; exit code 7 when something is wrong."""
    from belvedere_platform.cli.rendering import emit
    from belvedere_platform.errors import CorruptData
    from belvedere_training.data.verify import verify

    clock = Clock()
    found = verify(dataset_folder(reference), clock.say)
    if output != "table":
        emit(found.document(), output)
    else:
        for sentence in (*found.problems, *found.corrupt):
            click.echo(sentence)
    wrong = len(found.problems) + len(found.corrupt)
    if wrong:
        raise CorruptData(f"{reference}: {wrong} things are wrong, first: {[*found.problems, *found.corrupt][0]}")
    click.echo(f"{reference} is whole: {sum(found.samples.values())} samples", err=output != "table")
