"""`belvedere lineage`: where something comes from and where it went."""

from __future__ import annotations

import asyncio

import click

from belvedere_platform.cli.options import (
    artifact_store,
    artifacts_option,
    namespace_option,
    object_store,
    output_option,
    run,
    store_option,
    verbose_option,
)


@click.command()
@click.argument("name", required=False)
@namespace_option
@output_option("tree", "json", "yaml", "dot", default="tree")
@store_option
@artifacts_option
@verbose_option
def lineage(name: str | None, namespace: str, output: str) -> None:
    """Show data → run → version → engine → service around NAME, both ways; without a name, everything."""
    from belvedere_platform.artifacts.lineage import as_dot, as_json, as_tree, lineage_graph
    from belvedere_platform.cli.rendering import emit
    from belvedere_platform.errors import NotFound
    from belvedere_platform.store.kinds import ENGINE, MODEL_SERVICE, MODEL_VERSION, TRAINING_RUN

    async def read() -> list[dict[str, object]]:
        async with object_store() as store:
            kinds = (TRAINING_RUN, MODEL_VERSION, ENGINE, MODEL_SERVICE)
            listings = await asyncio.gather(*(store.list(kind, namespace) for kind in kinds))
            return [item for listing in listings for item in listing.items]

    graph = lineage_graph(run(read()), artifact_store().list())
    start: list[str] = []
    if name is not None:
        start = graph.matching(name)
        if not start:
            raise NotFound(
                f"nothing called {name!r} in namespace {namespace} has a lineage; `belvedere lineage` shows all"
            )
        graph = graph.around(start)
    if output == "tree":
        click.echo(as_tree(graph, marked=start))
    elif output == "dot":
        click.echo(as_dot(graph))
    else:
        emit(as_json(graph), output)
