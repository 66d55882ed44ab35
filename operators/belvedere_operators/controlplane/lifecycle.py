"""Start, wait for, and stop an installation: by what is written in its home, never by name, and never twice."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from belvedere_operators.controlplane.installation import Installation, port_flag, remove_leftovers
from belvedere_operators.controlplane.ports import conflicts
from belvedere_operators.controlplane.server import Parts
from belvedere_operators.executors.identity import find_instance, read_entry, wait_gone
from belvedere_operators.executors.process import Command, Exited, Running, Slot, read_tail
from belvedere_operators.manifests.platform import alertmanager_program
from belvedere_platform.errors import Unavailable

log = logging.getLogger(__name__)

READY = "ready"
STOP_SECONDS = 15.0
LOOK_SECONDS = 0.25


@dataclass(frozen=True, kw_only=True)
class Look:
    """What could be seen at one moment of a start."""

    parts: Parts
    ready: bool


def check_ports(installation: Installation) -> None:
    """Raise Unavailable, naming port, holder and flag, when someone else has one of the ports."""
    own = {identity.pid for identity in find_instance(installation.instance)}
    taken = conflicts(installation.ports, own=own)
    if taken:
        lines = [
            f"port {installation.ports[name]} ({name}) is in use by {holder}: end it, or choose another with {port_flag(name)}"
            for name, holder in taken.items()
        ]
        raise Unavailable("\n       ".join(lines))


def check_programs(installation: Installation) -> None:
    """Raise Unavailable when a program is missing."""
    path = installation.environment()["PATH"]
    wanted = ("ray", "belvedere", "prometheus", "promtool", alertmanager_program())
    missing = [program for program in wanted if shutil.which(program, path=path) is None]
    if missing:
        raise Unavailable(f"not installed: {', '.join(missing)}; `belvedere doctor` says what to type")


def start(installation: Installation) -> bool:
    """Start the control plane unless it runs; return whether it was started. Writes nothing before the ports are checked."""
    slot = installation.operator_slot()
    if isinstance(slot.observe(), Running):
        return False
    check_programs(installation)
    check_ports(installation)
    installation.home.mkdir(parents=True, exist_ok=True, mode=0o700)
    installation.save()
    slot.start(operator_command(installation), now=time.time())
    return True


def operator_command(installation: Installation) -> Command:
    """Return how the control plane's process is started."""
    program = Path(sys.executable).parent / "belvedere"
    return Command(
        arguments=(str(program), "operator", "--embedded", "--home", str(installation.home)),
        environment=installation.environment(),
        directory=installation.home,
        log=installation.log.with_name("output.log"),
    )


async def follow(installation: Installation, *, timeout_seconds: float) -> AsyncIterator[Look]:
    """Yield what can be seen until all is ready. Raises Unavailable when the control plane ended or time is up."""
    deadline = time.monotonic() + timeout_seconds
    parts: Parts = {"control plane": "starting"}
    async with httpx.AsyncClient(timeout=3.0, trust_env=False) as http:
        while True:
            try:
                answer = await http.get(installation.url("operator") + "/readyz")
                parts, ready = answer.json()["parts"], answer.status_code == 200
            except (httpx.HTTPError, ValueError, KeyError):
                ready = False
            yield Look(parts=parts, ready=ready)
            if ready:
                return
            _raise_if_ended(installation)
            if time.monotonic() > deadline:
                waiting = "; ".join(f"{name}: {state}" for name, state in parts.items() if state != READY)
                raise Unavailable(
                    f"not ready after {timeout_seconds:.0f} s ({waiting}); logs are in {installation.home / 'logs'}; "
                    "waiting again is `belvedere up`, giving up is `belvedere down`"
                )
            await asyncio.sleep(LOOK_SECONDS)


def _raise_if_ended(installation: Installation) -> None:
    observation = installation.operator_slot().observe()
    if isinstance(observation, Exited):
        said = read_tail(Path(observation.attempt.log), 1).removeprefix("error: ") or _last_logged(installation.log)
        raise Unavailable(f"the control plane ended with exit code {observation.code}: {said or installation.log}")


def _last_logged(path: Path) -> str:
    line = read_tail(path, 1)
    try:
        return str(json.loads(line)["event"])
    except (ValueError, KeyError):
        return line


async def stop(installation: Installation) -> int:
    """Stop everything: first who would start things again, then all slots at once, then what is left. Return how many."""
    before = find_instance(installation.instance)
    await installation.operator_slot().stop(grace_seconds=STOP_SECONDS)
    slots = [
        Slot(path, instance=installation.instance) for path in sorted((installation.home / "processes").glob("*_*"))
    ]
    async with asyncio.TaskGroup() as group:
        for slot in slots:
            group.create_task(slot.stop(grace_seconds=STOP_SECONDS))
    await end_leftovers(installation.instance)
    remove_leftovers(installation)
    return len(before)


async def end_leftovers(instance: str) -> None:
    """Kill what carries the id of the installation and belongs to no slot."""
    left = {identity for identity in find_instance(instance) if identity.pid not in _ancestors()}
    for identity in left:
        log.warning("ending process %d, which belongs to no slot", identity.pid)
        identity.send(signal.SIGKILL)
    for identity in left:
        await wait_gone(identity, 5.0)


def _ancestors() -> set[int]:
    """Return this process and those above it: `down` may have been typed in a shell that carries the id."""
    found, pid = set(), os.getpid()
    while pid > 1 and (entry := read_entry(pid)) is not None:
        found.add(pid)
        pid = entry.parent
    return found
