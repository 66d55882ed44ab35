"""`belvedere data`: build data sets as artifacts."""

from __future__ import annotations

import json
import os
import time

import click

from belvedere_platform.cli.options import artifact_store, artifacts_option


@click.group()
def data() -> None:
    """Build data sets and look at them."""


@data.group()
def build() -> None:
    """Download, render and push a data set."""


@build.command()
@click.option("--styles", default="", help="comma-separated names of drawing styles; all twelve by default")
@click.option("--size", default=64, show_default=True, help="edge of the pictures in pixels")
@click.option("--limit-concepts", type=int, default=None, help="only so many concepts, for a quick look")
@click.option("--output-tag", default="datasets/emoji", show_default=True, help="tag of the artifact")
@click.option("--workers", type=int, default=None, help="processes that render; the number of cores by default")
@artifacts_option
def emoji(styles: str, size: int, limit_concepts: int | None, output_tag: str, workers: int | None) -> None:
    """Build the emoji data set: twelve vendors' drawings with English and Chinese names."""
    from belvedere_training.data.build import BuildOptions, build_key, needed_packages
    from belvedere_training.data.build import build as build_emoji
    from belvedere_training.data.manifest import push
    from belvedere_training.data.packages import cache_directory, fetch

    started = time.monotonic()

    def say(message: str) -> None:
        click.echo(f"[{time.monotonic() - started:6.1f} s] {message}", err=True)

    names = tuple(name.strip() for name in styles.split(",") if name.strip())
    options = BuildOptions(
        styles=names, size=size, limit_concepts=limit_concepts, workers=workers or os.cpu_count() or 1
    )
    options.check()
    folder = cache_directory() / "datasets" / f"emoji-{build_key(options)[:16]}"
    if (folder / "manifest.json").is_file():
        say(f"built before from the same packages and options: {folder}")
    else:
        tarballs = fetch(needed_packages(options), cache_directory(), say)
        build_emoji(options, tarballs, folder, say)
    descriptor = push(folder, artifact_store(), output_tag)
    manifest = json.loads((folder / "manifest.json").read_text())
    for split, part in manifest["splits"].items():
        say(f"{split}: {part['samples']} samples in {len(part['shards'])} shards")
    click.echo(json.dumps({"tag": output_tag, "digest": descriptor.digest, "contentDigest": manifest["digest"]}))


@build.command()
@click.option("--output-tag", default="datasets/shapes", show_default=True, help="tag of the artifact")
@artifacts_option
def shapes(output_tag: str) -> None:
    """Build a tiny data set of drawn shapes; needs no download."""
    from belvedere_training.data.manifest import push
    from belvedere_training.data.packages import cache_directory
    from belvedere_training.data.shapes import build_shapes

    folder = build_shapes(cache_directory() / "datasets" / "shapes")
    descriptor = push(folder, artifact_store(), output_tag)
    click.echo(json.dumps({"tag": output_tag, "digest": descriptor.digest}))
