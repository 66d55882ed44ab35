"""`belvedere get`: list objects, once or as they change."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from belvedere_platform.cli.options import (
    namespace_option,
    object_store,
    output_option,
    run,
    store_option,
    verbose_option,
)

if TYPE_CHECKING:
    from belvedere_platform.store import Kind, Manifest, ObjectStore


@click.command()
@click.argument("kind")
@click.argument("name", required=False)
@namespace_option
@click.option("-A", "--all-namespaces", is_flag=True, help="List the objects of every namespace.")
@click.option("-l", "--selector", metavar="LABEL=VALUE,…", help="Only objects with these labels.")
@click.option("-w", "--watch", is_flag=True, help="Go on and print each change.")
@output_option("table", "wide", "json", "yaml", "name")
@store_option
@verbose_option
def get(
    kind: str, name: str | None, namespace: str, all_namespaces: bool, selector: str | None, watch: bool, output: str
) -> None:
    """List objects of a KIND (any case, singular, plural or short), or show one NAME."""
    from belvedere_platform.cli.kinds import find_kind, parse_labels, parse_target

    if name is None and "/" in kind:
        found, name = parse_target((kind,))
    else:
        found = find_kind(kind)
    labels = parse_labels(selector)
    view = _View(found, output, all_namespaces=all_namespaces)

    async def show() -> None:
        async with object_store() as store:
            items, version = await _read(store, found, name, None if all_namespaces else namespace, labels)
            view.show(items, single=name is not None)
            if watch:
                await _follow(store, view, found, name, None if all_namespaces else namespace, labels, version)

    run(show())


async def _read(
    store: ObjectStore, kind: Kind, name: str | None, namespace: str | None, labels: dict[str, str]
) -> tuple[list[Manifest], str]:
    listing = await store.list(kind, namespace, labels=labels or None)
    if name is None:
        return listing.items, listing.resource_version
    return [await store.get(kind, name, namespace or "default")], listing.resource_version


async def _follow(
    store: ObjectStore,
    view: _View,
    kind: Kind,
    name: str | None,
    namespace: str | None,
    labels: dict[str, str],
    version: str,
) -> None:
    async for event in store.watch(kind, namespace, resource_version=version, labels=labels or None):
        if event.type != "BOOKMARK" and name in (None, event.object["metadata"]["name"]):
            view.change(event.type, event.object)


class _View:
    """How objects of one kind are printed."""

    def __init__(self, kind: Kind, output: str, *, all_namespaces: bool) -> None:
        from belvedere_platform.cli.columns import columns_of

        self._kind, self._output, self._all = kind, output, all_namespaces
        self._columns = columns_of(kind, wide=output == "wide")
        self._widths: list[int] = []

    def show(self, items: list[Manifest], *, single: bool) -> None:
        from belvedere_platform.cli.rendering import emit, emit_documents, table

        items = [_without_managed_fields(item) for item in items]
        if self._output in ("json", "yaml"):
            if single:
                emit(items[0], self._output)
            else:
                emit_documents(items, self._output)
        elif self._output == "name":
            for item in items:
                click.echo(f"{self._kind.kind.lower()}/{item['metadata']['name']}")
        elif not items:
            click.echo(f"there are no {self._kind.plural}", err=True)
        else:
            rows = [self._row(item) for item in items]
            self._widths = [max(map(len, column)) for column in zip(self._headings(), *rows, strict=True)]
            click.echo(table(self._headings(), rows))

    def change(self, type_: str, item: Manifest) -> None:
        from belvedere_platform.cli.rendering import emit

        item = _without_managed_fields(item)
        if self._output in ("json", "yaml"):
            emit({"type": type_, "object": item}, self._output)
        elif self._output == "name":
            click.echo(f"{self._kind.kind.lower()}/{item['metadata']['name']}")
        else:
            row = self._row(item)
            if not self._widths:
                self._widths = [
                    max(len(heading), len(cell)) for heading, cell in zip(self._headings(), row, strict=True)
                ]
                click.echo(self._line(self._headings()))
            click.echo(self._line(row) + ("  deleted" if type_ == "DELETED" else ""))

    def _headings(self) -> list[str]:
        return [*(["NAMESPACE"] if self._all else []), "NAME", *(column.heading for column in self._columns)]

    def _row(self, item: Manifest) -> list[str]:
        from belvedere_platform.cli.columns import cells

        metadata = item["metadata"]
        first = [metadata.get("namespace", "")] if self._all else []
        return [*first, metadata["name"], *cells(item, self._columns, now=datetime.now(UTC))]

    def _line(self, row: list[str]) -> str:
        return "  ".join(cell.ljust(width) for cell, width in zip(row, self._widths, strict=True)).rstrip()


def _without_managed_fields(item: dict[str, Any]) -> dict[str, Any]:
    metadata = {key: value for key, value in item["metadata"].items() if key != "managedFields"}
    return {**item, "metadata": metadata}
