"""`belvedere wait`: return when an object is as wished."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from belvedere_platform.cli.options import namespace_option, object_store, run, store_option, verbose_option

if TYPE_CHECKING:
    from belvedere_platform.store import Kind, ObjectStore

Holds = Callable[[dict[str, Any] | None], bool]


@click.command()
@click.argument("target", nargs=-1, required=True, metavar="KIND/NAME")
@click.option(
    "--for",
    "wish",
    required=True,
    metavar="WISH",
    help="condition=TYPE[=STATUS], jsonpath={.PATH}=VALUE, create or delete.",
)
@click.option("--timeout", "timeout_seconds", type=float, default=600.0, show_default=True, metavar="SECONDS")
@namespace_option
@store_option
@verbose_option
def wait(target: tuple[str, ...], wish: str, timeout_seconds: float, namespace: str) -> None:
    """Wait until an object's condition holds; ends with 5 when that takes too long."""
    from belvedere_platform.cli.kinds import parse_target
    from belvedere_platform.errors import Unavailable

    kind, name = parse_target(target)
    holds, last = parse_wish(wish), _Last()

    async def until() -> None:
        async with object_store() as store:
            # The first look is free: whoever gives it no time at all wants to know how it is now.
            await _look(store, kind, name, namespace, last)
            async with asyncio.timeout(timeout_seconds):
                await _until(store, kind, name, namespace, holds, last)

    try:
        run(until())
    except TimeoutError as error:
        raise Unavailable(
            f"{kind.kind} {namespace}/{name} was not {wish} within {timeout_seconds:g} s: {_situation(last.seen)}"
        ) from error
    click.echo(f"{kind.kind.lower()}/{name} is {wish}")


class _Last:
    seen: dict[str, Any] | None = None
    version = ""


async def _look(store: ObjectStore, kind: Kind, name: str, namespace: str, last: _Last) -> None:
    listing = await store.list(kind, namespace)
    last.seen = next((item for item in listing.items if item["metadata"]["name"] == name), None)
    last.version = listing.resource_version


async def _until(store: ObjectStore, kind: Kind, name: str, namespace: str, holds: Holds, last: _Last) -> None:
    from belvedere_platform.errors import Gone

    while not holds(last.seen):
        with suppress(Gone):
            async for event in store.watch(kind, namespace, resource_version=last.version):
                if event.type == "BOOKMARK" or event.object["metadata"]["name"] != name:
                    continue
                last.seen = None if event.type == "DELETED" else event.object
                if holds(last.seen):
                    return
        await _look(store, kind, name, namespace, last)


def parse_wish(wish: str) -> Holds:
    """Return the test behind --for. Raises InvalidInput."""
    from belvedere_platform.cli.columns import json_path
    from belvedere_platform.errors import InvalidInput

    word, _, rest = wish.partition("=")
    if wish == "delete":
        return lambda manifest: manifest is None
    if wish == "create":
        return lambda manifest: manifest is not None
    if word == "condition" and rest:
        type_, _, status = rest.partition("=")
        return lambda manifest: manifest is not None and _condition_is(manifest, type_, status or "True")
    if word == "jsonpath" and "=" in rest:
        path, _, value = rest.rpartition("=")
        json_path({}, path.strip("'\""))
        return lambda manifest: (
            manifest is not None
            and [str(found) for found in json_path(manifest, path.strip("'\""))] == [value.strip("'\"")]
        )
    raise InvalidInput(
        f"--for is {wish!r}; it must be condition=TYPE[=STATUS], jsonpath={{.PATH}}=VALUE, create or delete"
    )


def _condition_is(manifest: dict[str, Any], type_: str, status: str) -> bool:
    generation = manifest["metadata"].get("generation")
    for one in manifest.get("status", {}).get("conditions", []):
        if one["type"].lower() == type_.lower() and one["status"].lower() == status.lower():
            observed = one.get("observedGeneration")
            return observed is None or generation is None or observed >= generation
    return False


def _situation(manifest: dict[str, Any] | None) -> str:
    if manifest is None:
        return "it does not exist"
    wrong = [
        f"{one['type']} is {one['status']}, {one['reason']}: {one.get('message', '')}"
        for one in manifest.get("status", {}).get("conditions", [])
        if one["status"] != "True"
    ]
    return "; ".join(wrong) or "it has no condition that says why; is the control plane running?"
