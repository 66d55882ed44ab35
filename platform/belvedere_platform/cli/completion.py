"""`belvedere completion`: the script that lets a shell complete verbs and options."""

from __future__ import annotations

import click


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a SHELL; load it with `source <(belvedere completion bash)`."""
    from click.shell_completion import get_completion_class

    from belvedere_platform.cli.main import cli

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(cli, {}, "belvedere", "_BELVEDERE_COMPLETE").source())
