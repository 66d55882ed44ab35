"""How the demo drives Belvedere: the console commands a user would type, and the object store to see what came of them."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from belvedere_platform.errors import BelvedereError, NotFound, Rejected, Unavailable
from belvedere_platform.store import Kind, Manifest, ObjectStore
from narration import Narrator

Render = Callable[[Manifest], str]
Until = Callable[[Manifest], bool]


def condition(manifest: Manifest, kind: str) -> dict[str, Any]:
    """Return the condition of a type, empty when it is not there yet."""
    found: list[dict[str, Any]] = [c for c in manifest.get("status", {}).get("conditions", []) if c["type"] == kind]
    return found[0] if found else {}


def is_true(manifest: Manifest, kind: str) -> bool:
    """Whether a condition holds for the object as it is now."""
    current = condition(manifest, kind)
    return (
        current.get("status") == "True" and current.get("observedGeneration", 0) >= manifest["metadata"]["generation"]
    )


def engine_refused(engine: Manifest) -> bool:
    """Whether an engine was built and refused, or could not be built."""
    return condition(engine, "Ready").get("reason") in ("ParityFailed", "LatencyBudgetExceeded", "BuildFailed")


@dataclass(kw_only=True)
class Control:
    """One embedded control plane in one home directory."""

    home: Path
    store: ObjectStore
    narrator: Narrator
    environment: dict[str, str]

    def run(self, *words: str, quiet: bool = False, check: bool = True) -> str:
        """Run `belvedere WORDS`, show it, return its standard output. Raises BelvedereError with what it said when it failed."""
        if not quiet:
            self.narrator.command(["belvedere", *words])
        done = subprocess.run(
            [str(Path(sys.executable).parent / "belvedere"), *words],
            env=os.environ | self.environment,
            capture_output=True,
            text=True,
        )
        if done.returncode and check:
            raise BelvedereError(
                f"`belvedere {' '.join(words)}` ended with exit code {done.returncode}: {done.stderr.strip()[-2000:]}"
            )
        if not quiet and done.stdout.strip():
            self.narrator.say("  " + done.stdout.strip().replace("\n", "\n  "))
        return done.stdout

    def json(self, *words: str) -> Any:
        """Run a command with `--output json` and return what it printed."""
        return json.loads(self.run(*words, "--output", "json", quiet=True))

    async def get(self, kind: Kind, name: str) -> Manifest | None:
        try:
            return await self.store.get(kind, name, "default")
        except NotFound:
            return None

    async def follow(
        self,
        kind: Kind,
        name: str,
        until: Until,
        render: Render,
        *,
        failed: Until | None = None,
        timeout_seconds: float,
    ) -> Manifest:
        """Show an object until it is as wished. Raises Rejected when it failed, Unavailable when it took too long."""
        with self.narrator.live() as line:
            return await self.wait(
                kind,
                name,
                until,
                failed=failed,
                timeout_seconds=timeout_seconds,
                seen=lambda manifest: line.show(f"{self.narrator.elapsed():5.0f} s  {render(manifest)}"),
            )

    async def wait(
        self,
        kind: Kind,
        name: str,
        until: Until,
        *,
        failed: Until | None = None,
        timeout_seconds: float,
        seen: Callable[[Manifest], None] | None = None,
    ) -> Manifest:
        """Wait until an object is as wished. Raises Rejected when it failed, Unavailable when it took too long."""
        deadline = asyncio.get_running_loop().time() + timeout_seconds
        while True:
            manifest = await self.get(kind, name)
            if manifest is not None:
                if seen is not None:
                    seen(manifest)
                if until(manifest):
                    return manifest
                if failed is not None and failed(manifest):
                    raise Rejected(f"{kind.kind} {name} failed: {explain(manifest)}")
            if asyncio.get_running_loop().time() > deadline:
                raise Unavailable(
                    f"{kind.kind} {name} was not ready within {timeout_seconds:.0f} s: {explain(manifest)}"
                )
            await asyncio.sleep(0.25)


def explain(manifest: Manifest | None) -> str:
    """Return what is not true of an object, as its conditions say."""
    if manifest is None:
        return "it does not exist"
    wrong = [
        f"{c['type']}={c['status']} {c['reason']}: {c.get('message', '')}"
        for c in manifest.get("status", {}).get("conditions", [])
        if c["status"] != "True"
    ]
    return "; ".join(wrong) or "it has no conditions yet"
