"""`belvedere delete`: remove objects, and what they own."""

from __future__ import annotations

import click

from belvedere_platform.cli.options import namespace_option, object_store, run, store_option, verbose_option


@click.command()
@click.argument("target", nargs=-1, metavar="KIND NAME… | KIND/NAME…")
@click.option(
    "-f", "--filename", "filenames", multiple=True, metavar="FILE|DIR|-", help="Delete what these files name."
)
@click.option("--ignore-not-found", is_flag=True, help="Objects that are not there are no error.")
@namespace_option
@store_option
@verbose_option
def delete(target: tuple[str, ...], filenames: tuple[str, ...], ignore_not_found: bool, namespace: str) -> None:
    """Delete objects by name or by the files that made them; what they own goes too."""
    from belvedere_platform.cli.documents import read_documents
    from belvedere_platform.cli.kinds import find_kind, parse_target
    from belvedere_platform.errors import InvalidInput, NotFound

    if (filenames and target) or not (filenames or target):
        raise InvalidInput("give either KIND NAME or --filename")
    if not target:
        documents = read_documents(filenames, namespace=namespace)
        doomed = [
            (one.kind, one.manifest["metadata"]["name"], one.manifest["metadata"].get("namespace", ""))
            for one in reversed(documents)
        ]
    elif len(target) == 1 and "/" not in target[0]:
        raise InvalidInput(f"delete {target[0]} needs a name: belvedere delete {target[0]} NAME")
    elif "/" in target[0]:
        doomed = [(*parse_target((word,)), namespace) for word in target]
    else:
        doomed = [(find_kind(target[0]), name, namespace) for name in target[1:]]

    async def remove() -> None:
        async with object_store() as store:
            for kind, name, where in doomed:
                try:
                    await store.delete(kind, name, where)
                except NotFound:
                    if not ignore_not_found:
                        raise
                else:
                    click.echo(f"{kind.kind.lower()}/{name} deleted")

    run(remove())
