"""`belvedere explain`: what a field means."""

from __future__ import annotations

import click

from belvedere_platform.cli.options import verbose_option


@click.command()
@click.argument("field")
@verbose_option
def explain(field: str) -> None:
    """Say what a FIELD means and allows, for example modelservice.spec.rollout.steps."""
    from belvedere_platform.resources.explain import explain as explained

    click.echo(explained(field))
