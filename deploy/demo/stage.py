"""What the chapters of the demo share: the control plane, the traffic, what was seen, and what is reported."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from belvedere_platform.artifacts import ArtifactStore
from belvedere_platform.store import Manifest
from control import Control, condition
from samples import Sample
from timeline import Timeline

QUICKSTART = Path(__file__).resolve().parent.parent / "examples" / "quickstart"
SERVICE = "emoji"
BACKENDS = ("rayServe", "triton")
FAULTS = ("failing", "slow", "wrong")


@dataclass(kw_only=True)
class Demo:
    """What the chapters share."""

    control: Control
    artifacts: ArtifactStore
    output: Path
    address: str
    quick: bool
    chaos: bool = False
    """Kill the control plane in the middle of the good rollout."""
    backend: str = "rayServe"
    traffic: asyncio.subprocess.Process | None = None
    timeline: Timeline
    samples: list[Sample] = field(default_factory=list)
    faulty: dict[str, asyncio.Task[str]] = field(default_factory=dict)
    """Bad versions that are being made beside the story, by fault."""
    report: dict[str, Any] = field(
        default_factory=lambda: {"versions": [], "engines": [], "rollouts": [], "scaling": []}
    )

    @property
    def requests_file(self) -> Path:
        return self.output / "requests.jsonl"

    @property
    def versions(self) -> tuple[str, ...]:
        """The versions that are served in the course of the story."""
        return ("emoji-clip-v1", "emoji-clip-v2", *(f"emoji-clip-v3-{fault}" for fault in FAULTS))

    def apply(self, file: str) -> None:
        """Apply a file of the quickstart; with a quick budget its twin in quick/, where there is one."""
        quick = QUICKSTART / "quick" / file
        path = quick if self.quick and quick.exists() else QUICKSTART / file
        self.control.run("apply", "-f", str(self._for_backend(path).relative_to(Path.cwd())))

    def _for_backend(self, path: Path) -> Path:
        """Return the file, or a copy that asks for another model server than its own."""
        text = path.read_text(encoding="utf-8")
        asked = text.replace(f"backend: {BACKENDS[0]}", f"backend: {self.backend}")
        if asked == text:
            return path
        copy = self.output / "manifests" / path.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(asked, encoding="utf-8")
        return copy

    async def send(self, command: str) -> None:
        """Tell the traffic generator what to do."""
        assert self.traffic is not None
        assert self.traffic.stdin is not None
        self.traffic.stdin.write(f"{command}\n".encode())
        await self.traffic.stdin.drain()


def service_line(service: Manifest) -> str:
    status = service.get("status", {})
    stable, candidate, rollout = status.get("stable") or {}, status.get("candidate") or {}, status.get("rollout") or {}
    line = f"stable {stable.get('version', '-')}"
    if candidate:
        line += f"  candidate {candidate['version']} {candidate.get('desiredWeight') or 0} %"
    if rollout.get("phase"):
        line += f"  {rollout['phase']}"
    if (status.get("evidence") or {}).get("line"):
        line += f"  {status['evidence']['line']}"
    return (
        line
        if stable or candidate
        else f"{condition(service, 'Ready').get('reason', 'Pending')}: {condition(service, 'Ready').get('message', '')}"
    )
