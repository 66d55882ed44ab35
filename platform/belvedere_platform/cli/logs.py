"""`belvedere logs`: what the processes behind an object wrote.

Executors write the output of an object's processes to `HOME/logs/NAMESPACE/KIND/NAME/*.log`, the kind in lower case.
What Serve's replicas write is in the local Ray's session, behind the link `HOME/ray`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from belvedere_platform.cli.options import (
    namespace_option,
    object_store,
    run,
    settings,
    store_option,
    verbose_option,
)

if TYPE_CHECKING:
    from belvedere_platform.store import Kind, ObjectStore

_POLL_SECONDS = 0.2
_CHUNK = 1 << 16


@click.command()
@click.argument("target", nargs=-1, required=True, metavar="KIND NAME")
@click.option("-f", "--follow", is_flag=True, help="Go on as more is written, until the work has ended.")
@click.option(
    "--tail", "num_lines", type=click.IntRange(min=0), metavar="LINES", help="Begin with the last lines only."
)
@namespace_option
@store_option
@verbose_option
def logs(target: tuple[str, ...], follow: bool, num_lines: int | None, namespace: str) -> None:
    """Print the log of a TrainingRun, Engine, ModelService, Deployment, Job, RayJob or RayService."""
    from belvedere_platform.cli.kinds import parse_target
    from belvedere_platform.errors import Unavailable

    kind, name = parse_target(target)
    where = settings()
    if where.store_url.startswith("kubernetes:"):
        raise Unavailable(
            f"on a cluster the pods have the logs: kubectl logs -n {namespace} -l {_selector(kind, name)} --all-containers --prefix"
        )
    run(_show(kind, name, namespace, where.home, follow=follow, num_lines=num_lines))


def _selector(kind: Kind, name: str) -> str:
    label = {
        "TrainingRun": "belvedere.dev/training-run",
        "Engine": "belvedere.dev/engine",
        "ModelService": "belvedere.dev/service",
        "Job": "batch.kubernetes.io/job-name",
        "RayJob": "ray.io/originated-from-cr-name",
        "RayService": "ray.io/originated-from-cr-name",
    }.get(kind.kind, "app.kubernetes.io/name")
    return f"{label}={name}"


async def _show(kind: Kind, name: str, namespace: str, home: Path, *, follow: bool, num_lines: int | None) -> None:
    from belvedere_platform.errors import NotFound

    async with object_store() as store:
        manifest = await store.get(kind, name, namespace)
        places = [_place(home, child) for child in await sources(store, manifest)]
        reader = _Reader(places, num_lines)
        if not reader.read() and not follow:
            looked = (
                ", ".join(str(folder / pattern) for folder, pattern in places)
                or "nothing, because it has no process yet"
            )
            raise NotFound(f"{kind.kind} {namespace}/{name} has written no log; looked in {looked}")
        while follow:
            ended = is_over(await store.get(kind, name, namespace))
            reader.places = [_place(home, child) for child in await sources(store, manifest)]
            if not reader.read() and ended:
                return
            await asyncio.sleep(_POLL_SECONDS)


async def sources(store: ObjectStore, manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the objects whose processes speak for this one: itself, or the children that do its work."""
    from belvedere_platform.store.kinds import JOB, RAY_JOB, RAY_SERVICE

    child = {"TrainingRun": RAY_JOB, "Engine": JOB, "ModelService": RAY_SERVICE}.get(manifest["kind"])
    if child is None:
        return [manifest]
    listing = await store.list(child, manifest["metadata"]["namespace"])
    uid = manifest["metadata"]["uid"]
    owned = [
        item
        for item in listing.items
        if any(owner["uid"] == uid for owner in item["metadata"].get("ownerReferences", ()))
    ]
    return sorted(owned, key=lambda item: (item["metadata"]["creationTimestamp"], item["metadata"]["name"]))


def is_over(manifest: dict[str, Any]) -> bool:
    """Whether an object's work has ended, so that its log grows no more."""
    status = manifest.get("status") or {}
    kind = manifest["kind"]
    if kind == "TrainingRun":
        return status.get("phase") in ("Succeeded", "Failed")
    if kind == "RayJob":
        return status.get("jobStatus") in ("SUCCEEDED", "FAILED", "STOPPED")
    final = {one["type"]: one for one in status.get("conditions", [])}
    if kind == "Job":
        return any(final.get(type_, {}).get("status") == "True" for type_ in ("Complete", "Failed"))
    if kind == "Engine":
        return final.get("Ready", {}).get("reason") not in (None, "Pending", "Building")
    return False


def _place(home: Path, manifest: dict[str, Any]) -> tuple[Path, str]:
    metadata = manifest["metadata"]
    if manifest["kind"] == "RayService":
        # Serve names the file of a replica replica_APPLICATION_DEPLOYMENT_ID.log.
        return home / "ray/session_latest/logs/serve", f"replica_{metadata['namespace']}.{metadata['name']}_*.log"
    return home.joinpath("logs", metadata["namespace"], manifest["kind"].lower(), metadata["name"]), "*.log"


class _Reader:
    """Reads what is new in log files, line by line, each line under its file's name when there are several."""

    def __init__(self, places: list[tuple[Path, str]], num_lines: int | None) -> None:
        self.places = places
        self._num_lines = num_lines
        self._offsets: dict[Path, int] = {}

    def read(self) -> bool:
        """Print what is new, and return whether anything was."""
        found = [file for folder, pattern in self.places for file in sorted(folder.glob(pattern)) if file.is_file()]
        # What was turned over comes before the rest, once: it is what was read already where a log is followed.
        newest_only = bool(self._offsets) or self._num_lines is not None
        files = [file for file in found if not (newest_only and file.name.endswith(".1.log"))]
        several = len(files) > 1
        return any([self._read_file(file, several) for file in files])

    def _read_file(self, file: Path, several: bool) -> bool:
        first = file not in self._offsets
        start = self._offsets.get(file, 0)
        size = file.stat().st_size
        if size < start:
            start = 0
        with file.open("rb") as stream:
            if first and self._num_lines is not None:
                start = _start_of_tail(stream, size, self._num_lines)
            stream.seek(start)
            text = stream.read()
        # A line that is still being written is left for the next look.
        whole = text if first and not self._offsets and not several else text[: text.rfind(b"\n") + 1]
        self._offsets[file] = start + len(whole)
        self._print(
            whole.decode(errors="replace").splitlines(), f"[{file.parent.name}/{file.stem}] " if several else ""
        )
        return bool(whole)

    def _print(self, lines: Iterable[str], prefix: str) -> None:
        for line in lines:
            click.echo(prefix + line)


def _start_of_tail(stream: Any, size: int, num_lines: int) -> int:
    found, position, block = 0, size, b""
    while position > 0 and found <= num_lines:
        step = min(_CHUNK, position)
        position -= step
        stream.seek(position)
        block = stream.read(step) + block
        found = block.count(b"\n")
    lines = block.splitlines(keepends=True)
    return size - sum(map(len, lines[-num_lines:] if num_lines else []))
