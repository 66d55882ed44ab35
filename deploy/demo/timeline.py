"""What happened, second by second: the ModelService's status sampled while the demo runs, and the clients' own record."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from belvedere_platform.errors import NotFound
from belvedere_platform.store import Manifest, ObjectStore
from belvedere_platform.store.kinds import MODEL_SERVICE


@dataclass(kw_only=True)
class Timeline:
    """Samples of a ModelService's status, kept only when something changed; decisions are kept for ever."""

    store: ObjectStore
    name: str
    samples: list[dict[str, Any]] = field(default_factory=list)
    decisions: dict[tuple[str, str, str], dict[str, Any]] = field(default_factory=dict)

    async def record(self) -> None:
        """Sample until cancelled."""
        while True:
            with contextlib.suppress(NotFound):
                self.observe(await self.store.get(MODEL_SERVICE, self.name, "default"))
            await asyncio.sleep(0.5)

    def observe(self, manifest: Manifest) -> None:
        status = manifest.get("status", {})
        for decision in status.get("decisions", []):
            self.decisions[(decision["time"], decision["decision"], decision["reason"])] = decision
        stable, candidate = status.get("stable") or {}, status.get("candidate") or {}
        self.samples.append(
            {
                "time": time.time(),
                "stable": stable.get("version"),
                "candidate": candidate.get("version"),
                "weight": candidate.get("desiredWeight") or 0,
                "observed_weight": candidate.get("observedWeight"),
                "stable_p95": stable.get("p95Milliseconds"),
                "candidate_p95": candidate.get("p95Milliseconds"),
                "evidence": status.get("evidence") or {},
                "replicas": status.get("replicas"),
                "desired_replicas": (status.get("scaling") or {}).get("desiredReplicas"),
                "phase": (status.get("rollout") or {}).get("phase"),
            }
        )

    def decided(self, candidate: str) -> list[dict[str, Any]]:
        """Return the decisions about one candidate in order of time."""
        return sorted((d for d in self.decisions.values() if d.get("candidate") == candidate), key=lambda d: d["time"])


def seconds_between(begin: str, end: str) -> float:
    """Return the seconds between two RFC 3339 times."""
    return (datetime.fromisoformat(end) - datetime.fromisoformat(begin)).total_seconds()


def requests_between(path: Path, begin: float, end: float) -> list[dict[str, Any]]:
    """Return the clients' records of requests begun in a span of time (seconds since the epoch)."""
    with path.open() as lines:
        records: Iterable[dict[str, Any]] = (json.loads(line) for line in lines if line.endswith("\n"))
        return [record for record in records if begin <= record["time"] < end]
