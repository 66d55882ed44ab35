"""What `belvedere rollout` prints: a page about one service, live if wished, and its history."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import click

from belvedere_operators.controllers.modelservice.journal import journal_name, read_journal
from belvedere_operators.controllers.modelservice.status import decision_record
from belvedere_platform.cli.rendering import emit, table
from belvedere_platform.errors import CorruptData, Gone, NotFound
from belvedere_platform.store import Manifest, ObjectStore
from belvedere_platform.store.kinds import CONFIG_MAP, MODEL_SERVICE

if TYPE_CHECKING:
    from rich.live import Live

SHOWN = 6
WIDE = 20
BAR_WIDTH = 30


def facts(manifest: Manifest) -> dict[str, Any]:
    """Return what there is to know of a rollout, for programs."""
    status = manifest.get("status", {})
    keys = ("stable", "candidate", "rollout", "evidence", "scaling", "conditions", "decisions")
    metadata = manifest["metadata"]
    return {
        "service": metadata["name"],
        "namespace": metadata["namespace"],
        "version": manifest["spec"]["version"],
        **{key: status[key] for key in keys if key in status},
    }


def show(manifest: Manifest, output: str) -> None:
    """Print the page once."""
    if output in ("json", "yaml"):
        emit(facts(manifest), output)
    else:
        click.echo("\n".join(page(manifest, wide=output == "wide")))


async def follow(store: ObjectStore, manifest: Manifest, output: str) -> Manifest:
    """Print the page whenever it changes, until the rollout has ended; return the last object."""
    name, namespace = manifest["metadata"]["name"], manifest["metadata"]["namespace"]
    with _screen(output) as live:
        while True:
            listing = await store.list(MODEL_SERVICE, namespace)
            for item in listing.items:
                if item["metadata"]["name"] == name:
                    manifest = item
            _draw(live, manifest, output)
            if ended(manifest):
                return manifest
            try:
                async for event in store.watch(MODEL_SERVICE, namespace, resource_version=listing.resource_version):
                    if event.type == "BOOKMARK" or event.object["metadata"]["name"] != name:
                        continue
                    if event.type == "DELETED":
                        raise NotFound(f"ModelService {namespace}/{name} was deleted")
                    manifest = event.object
                    _draw(live, manifest, output)
                    if ended(manifest):
                        return manifest
            except Gone:
                continue


def ended(manifest: Manifest) -> bool:
    """Return whether nothing is being rolled out, for what the spec asks now."""
    status = manifest.get("status", {})
    if status.get("observedGeneration") != manifest["metadata"].get("generation"):
        return False
    phase = (status.get("rollout") or {}).get("phase")
    if phase in ("Preparing", "Progressing", "Paused"):
        return False
    return phase is not None or (status.get("stable") or {}).get("version") == manifest["spec"]["version"]


def ended_badly(manifest: Manifest) -> bool:
    """Return whether what the spec asks for was aborted."""
    rollout = manifest.get("status", {}).get("rollout") or {}
    return rollout.get("phase") == "Aborted" and rollout.get("candidate") == manifest["spec"]["version"]


def page(manifest: Manifest, *, wide: bool = False) -> list[str]:
    """Return the page, line by line."""
    status = manifest.get("status", {})
    lines = [_headline(manifest)]
    sides = [("stable", status.get("stable")), ("candidate", status.get("candidate"))]
    rows = [_side(name, side, wide) for name, side in sides if side]
    headings = ["", "VERSION", "WEIGHT", "SEEN", "REPLICAS", "P95", "REQUESTS", "ERRORS", *(["ENGINE"] if wide else [])]
    lines += [table(headings, rows)] if rows else []
    candidate = status.get("candidate")
    if candidate:
        lines.append(_bar(candidate.get("desiredWeight") or 0))
    if (status.get("evidence") or {}).get("line"):
        lines += ["", f"evidence  {status['evidence']['line']}"]
    lines += _troubles(status.get("conditions", ()), wide)
    decisions = status.get("decisions", ())
    if decisions:
        lines += ["", _decisions(decisions[-(WIDE if wide else SHOWN) :])]
    return lines


def _headline(manifest: Manifest) -> str:
    metadata, status = manifest["metadata"], manifest.get("status", {})
    rollout = status.get("rollout") or {}
    name = f"{metadata['namespace']}/{metadata['name']}"
    if not rollout:
        stable = status.get("stable") or {}
        if stable.get("desiredWeight"):
            return f"{name}: {stable['version']} serves, no rollout yet"
        return f"{name}: nothing serves yet" + (f", {stable['version']} is being prepared" if stable else "")
    step = f", step {rollout['step'] + 1} of {len(manifest['spec'].get('rollout', {}).get('steps', ())) or '?'}"
    progress = step if rollout.get("step") is not None and rollout["phase"] in ("Progressing", "Paused") else ""
    return f"{name}: rollout of {rollout['candidate']} {rollout['phase'].lower()}{progress}"


def _side(name: str, side: dict[str, Any], wide: bool) -> list[str]:
    latency, seen = side.get("p95Milliseconds"), side.get("observedWeight")
    return [
        name,
        side["version"],
        f"{side['desiredWeight']} %" if side.get("desiredWeight") is not None else "-",
        f"{seen:.1f} %" if seen is not None else "-",
        f"{side.get('routableReplicas', 0)}/{side.get('desiredReplicas', 0)}",
        f"{latency:.1f} ms" if latency is not None else "-",
        str(side.get("requests", "-")),
        str(side.get("errors", "-")),
        *([str(side.get("engine", "-"))[:19]] if wide else []),
    ]


def _bar(weight: int) -> str:
    filled = round(weight / 100 * BAR_WIDTH)
    return f"candidate {'█' * filled}{'░' * (BAR_WIDTH - filled)} {weight} %"


def _troubles(conditions: Sequence[dict[str, Any]], wide: bool) -> list[str]:
    """Return the conditions that need attention, or all of them."""
    wrong = {"Ready": "False", "EngineReady": "False", "CapacityAvailable": "False", "SLOMet": "False"}
    wrong |= {"Degraded": "True", "Accepted": "False"}
    shown = [one for one in conditions if wide or wrong.get(one["type"]) == one["status"]]
    progress = [one for one in conditions if one["type"] == "RolloutProgressing" and one not in shown]
    lines = [f"{one['type']}={one['status']} {one['reason']}: {one.get('message', '')}" for one in (*progress, *shown)]
    return ["", *lines] if lines else []


def _decisions(decisions: Sequence[dict[str, Any]], *, evidence: bool = False) -> str:
    headings = ["TIME", "DECISION", "CANDIDATE", "WEIGHT", "SIGNAL", "REASON", *(["EVIDENCE"] if evidence else [])]
    return table(headings, [_decision(one, evidence) for one in decisions])


def _decision(one: dict[str, Any], evidence: bool) -> list[str]:
    inputs = one.get("inputs", {})
    before, after = inputs.get("fromWeight"), inputs.get("toWeight")
    moved = f"{before} → {after} %" if before != after else (f"{after} %" if after is not None else "-")
    return [
        one["time"],
        one["decision"],
        one.get("candidate") or "-",
        moved,
        one.get("signal") or "-",
        one["reason"],
        *([one.get("evidence", {}).get("line", "")] if evidence else []),
    ]


async def decisions_of(store: ObjectStore, manifest: Manifest) -> list[dict[str, Any]]:
    """Return every decision kept: those of the journal, or the fewer of status when it cannot be read."""
    metadata = manifest["metadata"]
    try:
        stored = await store.get(CONFIG_MAP, journal_name(metadata["name"]), metadata["namespace"])
        records = read_journal(stored).decisions
    except (NotFound, CorruptData):
        return list(manifest.get("status", {}).get("decisions", ()))
    return [decision_record(one).model_dump(by_alias=True, mode="json", exclude_none=True) for one in records]


def show_history(service: str, decisions: list[dict[str, Any]], output: str) -> None:
    """Print all decisions."""
    if output in ("json", "yaml"):
        emit(decisions, output)
    elif not decisions:
        click.echo(f"nothing has been decided about {service} yet", err=True)
    else:
        click.echo(_decisions(decisions, evidence=output == "wide"))


def _screen(output: str) -> Any:
    """Return a live screen for a person at a terminal, and nothing for a file or a program."""
    if output in ("json", "yaml") or not sys.stdout.isatty():
        return nullcontext(None)
    from rich.live import Live

    return Live(auto_refresh=False, vertical_overflow="visible")


def _draw(live: Live | None, manifest: Manifest, output: str) -> None:
    if live is None:
        show(manifest, output)
        return
    from rich.text import Text

    live.update(Text("\n".join(page(manifest, wide=output == "wide")), no_wrap=True, overflow="ellipsis"), refresh=True)
