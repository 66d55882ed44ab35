"""`belvedere describe`: one object with its conditions, its children and what happened to it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    from belvedere_platform.store import Kind, ObjectStore

_HIDDEN = frozenset({"managedFields", "resourceVersion", "uid", "generation", "name", "namespace", "creationTimestamp"})


@click.command()
@click.argument("target", nargs=-1, required=True, metavar="KIND NAME")
@namespace_option
@output_option("text", "json", "yaml", default="text")
@store_option
@verbose_option
def describe(target: tuple[str, ...], namespace: str, output: str) -> None:
    """Show one object: spec, status, conditions, the tree of its children, and its events."""
    from belvedere_platform.cli.kinds import parse_target
    from belvedere_platform.cli.rendering import emit

    kind, name = parse_target(target)
    found = run(_read(kind, name, namespace))
    if output == "text":
        click.echo(as_text(found, datetime.now(UTC)))
    else:
        emit({"object": found.manifest, "children": found.children, "events": found.events}, output)


@dataclass(frozen=True, kw_only=True)
class Described:
    """An object and what belongs to it. A child is `{kind, name, ready, children}`."""

    manifest: dict[str, Any]
    children: list[dict[str, Any]]
    events: list[dict[str, Any]]


async def _read(kind: Kind, name: str, namespace: str) -> Described:
    from belvedere_platform.store.kinds import EVENT, KINDS

    async with object_store() as store:
        manifest = await store.get(kind, name, namespace)
        listings = await asyncio.gather(*(_list(store, other, namespace) for other in KINDS if other is not EVENT))
        everything = [item for listing in listings for item in listing]
        events = await _list(store, EVENT, namespace)
    uid = manifest["metadata"]["uid"]
    about = [event for event in events if event.get("involvedObject", {}).get("uid") == uid]
    about.sort(key=lambda event: event.get("lastTimestamp") or "")
    return Described(manifest=manifest, children=children_of(uid, everything), events=about)


async def _list(store: ObjectStore, kind: Kind, namespace: str) -> list[dict[str, Any]]:
    from belvedere_platform.errors import NotFound

    try:
        return (await store.list(kind, namespace)).items
    except NotFound:
        # A cluster without KubeRay or the Prometheus operator does not know their kinds.
        return []


def children_of(uid: str, everything: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the tree of what an object owns, by owner references."""
    found = [
        {
            "kind": item["kind"],
            "name": item["metadata"]["name"],
            "ready": readiness(item),
            "children": children_of(item["metadata"]["uid"], everything),
        }
        for item in everything
        if any(owner["uid"] == uid for owner in item["metadata"].get("ownerReferences", ()))
    ]
    return sorted(found, key=lambda child: (child["kind"], child["name"]))


def readiness(manifest: Mapping[str, Any]) -> str:
    """Return in a few words how an object is."""
    status = manifest.get("status") or {}
    for one in status.get("conditions") or ():
        if one["type"] in ("Ready", "Available", "Complete", "Failed") and one["status"] == "True":
            return str(one["type"])
        if one["type"] == "Ready":
            return str(one.get("reason", "NotReady"))
    if manifest["kind"] == "EndpointSlice":
        conditions = manifest["endpoints"][0]["conditions"]
        return "Terminating" if conditions.get("terminating") else "Ready" if conditions.get("ready") else "NotReady"
    return str(status.get("jobStatus") or status.get("serviceStatus") or "")


def as_text(found: Described, now: datetime) -> str:
    """Return the description."""
    from belvedere_platform.cli.columns import age

    manifest, metadata = found.manifest, found.manifest["metadata"]
    lines = [
        f"Name:       {metadata['name']}",
        f"Namespace:  {metadata.get('namespace', '')}",
        f"Kind:       {manifest['kind']} ({manifest['apiVersion']})",
        f"Age:        {age(metadata['creationTimestamp'], now)}, generation {metadata.get('generation', '-')}",
    ]
    lines += _block("Metadata", {key: value for key, value in metadata.items() if key not in _HIDDEN})
    body = {key: value for key, value in manifest.items() if key not in ("apiVersion", "kind", "metadata", "status")}
    lines += _block("Spec", body.get("spec", body))
    status = dict(manifest.get("status") or {})
    conditions = status.pop("conditions", [])
    lines += _block("Status", status)
    lines += _conditions(conditions, now)
    lines += ["Children:" if found.children else "Children:   none", *_tree(found.children, "  ")]
    return "\n".join(lines + _events(found.events, now))


def _block(title: str, value: Any) -> list[str]:
    import yaml

    if not value:
        return []
    text = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=120)
    return [f"{title}:", *(f"  {line}" for line in text.splitlines())]


def _conditions(conditions: Sequence[Mapping[str, Any]], now: datetime) -> list[str]:
    from belvedere_platform.cli.columns import age
    from belvedere_platform.cli.rendering import table

    if not conditions:
        return []
    rows = [
        (
            one["type"], one["status"], one.get("reason", ""),
            age(one["lastTransitionTime"], now) if one.get("lastTransitionTime") else "", one.get("message", ""),
        )
        for one in conditions
    ]  # fmt: skip
    text = table(("TYPE", "STATUS", "REASON", "SINCE", "MESSAGE"), rows)
    return ["Conditions:", *(f"  {line}" for line in text.splitlines())]


def _tree(children: Sequence[Mapping[str, Any]], lead: str) -> list[str]:
    lines = []
    for position, child in enumerate(children):
        last = position == len(children) - 1
        ready = f"  {child['ready']}" if child["ready"] else ""
        lines.append(f"{lead}{'└─' if last else '├─'} {child['kind']}/{child['name']}{ready}")
        lines += _tree(child["children"], lead + ("   " if last else "│  "))
    return lines


def _events(events: Sequence[Mapping[str, Any]], now: datetime) -> list[str]:
    from belvedere_platform.cli.columns import age
    from belvedere_platform.cli.rendering import table

    if not events:
        return ["Events:     none"]
    rows = [
        (
            age(event["lastTimestamp"], now) if event.get("lastTimestamp") else "",
            event.get("type", ""), event.get("reason", ""), str(event.get("count", 1)), event.get("message", ""),
        )
        for event in events
    ]  # fmt: skip
    text = table(("LAST", "TYPE", "REASON", "COUNT", "MESSAGE"), rows)
    return ["Events:", *(f"  {line}" for line in text.splitlines())]
