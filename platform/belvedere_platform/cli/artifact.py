"""`belvedere artifact`: look into the artifact store, name what is in it, and clean it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from belvedere_platform.cli.options import (
    artifact_store,
    artifacts_option,
    object_store,
    output_option,
    run,
    store_option,
    verbose_option,
)

if TYPE_CHECKING:
    from belvedere_platform.artifacts import Descriptor, Foreign


@click.group()
def artifact() -> None:
    """List, tag, import, pull, verify and clean up datasets, models and engines."""


@artifact.command(name="list")
@click.option("--kind", type=click.Choice(["dataset", "model", "engine"]), help="Only artifacts of this kind.")
@output_option("table", "json", "yaml")
@store_option
@artifacts_option
@verbose_option
def list_(kind: str | None, output: str) -> None:
    """List artifacts with their tags, and what other tools put into the store as foreign."""
    from belvedere_platform.cli.rendering import emit, table

    ours, others = artifact_store().contents()
    found = [one for one in ours if kind in (None, one.kind.value)]
    foreign = others if kind is None else []
    if output != "table":
        emit([*map(_plain, found), *map(_plain_foreign, foreign)], output)
        return
    rows = [
        (one.kind.value, one.digest[:19], size_text(one.size_bytes), str(len(one.files)), ", ".join(one.tags) or "-")
        for one in found
    ]
    rows += [
        (f"foreign: {one.artifact_type}", one.digest[:19], "-", "-", ", ".join(one.tags) or "-") for one in foreign
    ]
    click.echo(table(("KIND", "DIGEST", "SIZE", "FILES", "TAGS"), rows))


@artifact.command()
@click.argument("reference")
@output_option("json", "yaml", default="yaml")
@store_option
@artifacts_option
@verbose_option
def show(reference: str, output: str) -> None:
    """Show the files and the config of one artifact, by tag or digest."""
    from belvedere_platform.cli.rendering import emit

    store = artifact_store()
    one = store.resolve(reference)
    files = [{"name": entry.name, "size": entry.size, "digest": entry.digest} for entry in one.files]
    emit({**_plain(one), "config": store.config(one.digest), "files": files}, output)


@artifact.command()
@click.argument("reference")
@click.argument("tag")
@store_option
@artifacts_option
@verbose_option
def tag(reference: str, tag: str) -> None:
    """Give the artifact REFERENCE (a tag or digest) one more TAG."""
    click.echo(f"{artifact_store().tag(reference, tag).digest} is {tag}")


@artifact.command(name="import")
@click.option(
    "--from", "source", required=True, type=click.Path(path_type=Path, exists=True, file_okay=False), metavar="DIR"
)
@click.option("--kind", required=True, type=click.Choice(["dataset", "model", "engine"]))
@click.option("--tag", required=True)
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help="JSON.",
)
@store_option
@artifacts_option
@verbose_option
def import_(source: Path, kind: str, tag: str, config_file: Path | None) -> None:
    """Push every file of a directory as one artifact."""
    descriptor = push_directory(source, kind, tag, _config(config_file))
    click.echo(f"{descriptor.digest} is {tag}")


@artifact.command()
@click.argument("reference")
@click.option("--into", required=True, type=click.Path(path_type=Path, file_okay=False), metavar="DIR")
@store_option
@artifacts_option
@verbose_option
def pull(reference: str, into: Path) -> None:
    """Put the files of REFERENCE into a directory, checked; a broken pull goes on where it stopped."""
    click.echo(artifact_store().pull(reference, into))


@artifact.command()
@click.argument("reference")
@store_option
@artifacts_option
@verbose_option
def verify(reference: str) -> None:
    """Read every byte of REFERENCE and compare it with its digest."""
    one = artifact_store().verify(reference)
    click.echo(f"{one.digest} is whole: {len(one.files)} files, {size_text(one.size_bytes)}")


@artifact.command()
@click.option("--dry-run", is_flag=True, help="Say what would go, remove nothing.")
@click.option(
    "--keep-tag",
    "keep_tags",
    multiple=True,
    metavar="PATTERN",
    help="Keep what has such a tag, for example 'models/v*'.",
)
@output_option("table", "json", "yaml")
@store_option
@artifacts_option
@verbose_option
def gc(dry_run: bool, keep_tags: tuple[str, ...], output: str) -> None:
    """Remove what no object, no data set name and no tag of your own refers to."""
    from belvedere_platform.artifacts.garbage import needed
    from belvedere_platform.cli.rendering import emit, table
    from belvedere_platform.store.kinds import ENGINE, MODEL_VERSION, TRAINING_RUN

    async def read() -> list[dict[str, Any]]:
        async with object_store() as objects:
            listings = await asyncio.gather(*(objects.list(kind) for kind in (TRAINING_RUN, MODEL_VERSION, ENGINE)))
            return [item for listing in listings for item in listing.items]

    store, objects = artifact_store(), run(read())
    found = store.list()
    models = {one.digest: store.config(one.digest).get("modelDigest", "") for one in found if one.kind == "engine"}
    keep = needed(found, objects, built_from=models, keep_tags=keep_tags)
    garbage = store.collect_garbage(keep, among=found, dry_run=dry_run)
    if output != "table":
        removed = [_plain(one) for one in garbage.artifacts]
        emit(
            {"dryRun": dry_run, "artifacts": removed, "blobs": list(garbage.blobs), "bytes": garbage.size_bytes}, output
        )
        return
    if garbage.artifacts:
        rows = [(one.kind.value, one.digest[:19], ", ".join(one.tags) or "-") for one in garbage.artifacts]
        click.echo(table(("KIND", "DIGEST", "TAGS"), rows))
    verb = "would remove" if dry_run else "removed"
    count = f"{len(garbage.artifacts)} artifacts, {len(garbage.blobs)} blobs"
    click.echo(f"{verb} {count}, {size_text(garbage.size_bytes)}")


def push_directory(source: Path, kind: str, tag: str | None, config: dict[str, Any]) -> Descriptor:
    """Push the files of a directory; hidden ones stay behind."""
    files = {
        path.relative_to(source).as_posix(): path
        for path in sorted(source.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(source).parts)
    }
    return artifact_store().push(kind, files, config=config, tag=tag)


def _config(file: Path | None) -> dict[str, Any]:
    import json

    from belvedere_platform.errors import InvalidInput

    if file is None:
        return {}
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InvalidInput(f"--config {file} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise InvalidInput(f"--config {file} must hold a JSON object")
    return config


def size_text(size: int) -> str:
    """Return bytes in the unit that reads best."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def _plain(one: Descriptor) -> dict[str, Any]:
    return {
        "kind": one.kind.value,
        "digest": one.digest,
        "tags": list(one.tags),
        "sizeBytes": one.size_bytes,
        **({"subject": one.subject} if one.subject else {}),
    }


def _plain_foreign(one: Foreign) -> dict[str, Any]:
    return {"kind": "foreign", "artifactType": one.artifact_type, "digest": one.digest, "tags": list(one.tags)}
