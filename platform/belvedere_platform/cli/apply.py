"""`belvedere apply`: make the objects in files what the files say."""

from __future__ import annotations

from typing import Any

import click

from belvedere_platform.cli.options import (
    FIELD_MANAGER,
    namespace_option,
    object_store,
    output_option,
    run,
    store_option,
    verbose_option,
)


@click.command()
@click.option(
    "-f", "--filename", "filenames", multiple=True, required=True, metavar="FILE|DIR|-", help="May be repeated."
)
@click.option("--dry-run", is_flag=True, help="Check everything, write nothing.")
@namespace_option
@store_option
@output_option("table", "json", "yaml", "name")
@verbose_option
def apply(filenames: tuple[str, ...], dry_run: bool, namespace: str, output: str) -> None:
    """Create or change objects from YAML files, all checked before any is written."""
    from belvedere_platform.cli.documents import read_documents
    from belvedere_platform.cli.rendering import emit_documents

    documents = read_documents(filenames, namespace=namespace)

    async def write() -> list[tuple[str, str, dict[str, Any]]]:
        async with object_store() as store:
            return [await _apply(store, one, dry_run) for one in documents]

    results = run(write())
    if output in ("json", "yaml"):
        emit_documents([manifest for _, _, manifest in results], output)
        return
    for name, verb, _ in results:
        click.echo(name if output == "name" else f"{name} {verb}{' (dry run)' if dry_run else ''}")


async def _apply(store: Any, document: Any, dry_run: bool) -> tuple[str, str, dict[str, Any]]:
    from belvedere_platform.errors import NotFound

    metadata = document.manifest["metadata"]
    try:
        before = await store.get(document.kind, metadata["name"], metadata.get("namespace", ""))
    except NotFound:
        before = None
    if dry_run:
        return document.name, "would be created" if before is None else "would be applied", document.manifest
    after = await store.apply(document.manifest, field_manager=FIELD_MANAGER)
    if before is None:
        return document.name, "created", after
    same = before["metadata"]["resourceVersion"] == after["metadata"]["resourceVersion"]
    return document.name, "unchanged" if same else "configured", after
