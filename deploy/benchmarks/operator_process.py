"""The operator of a benchmark: its process, and what it says of itself."""

from __future__ import annotations

import asyncio
import re
import subprocess
import time
from pathlib import Path

import httpx

PATIENCE_SECONDS = 900.0
WRITES = re.compile(
    r'^belvedere_store_requests_total\{kind="(?!Lease)(\w+)",outcome="\w+",verb="(?:apply|apply_status|delete)"\} (\S+)'
)


class Operator:
    """The operator's own account of itself."""

    def __init__(self, port: int, process: subprocess.Popen[bytes]) -> None:
        self._url = f"http://127.0.0.1:{port}"
        self._process = process

    async def wait_ready(self) -> None:
        """Return when it says so."""
        async with httpx.AsyncClient(trust_env=False, timeout=10) as http:
            deadline = time.monotonic() + PATIENCE_SECONDS
            while time.monotonic() < deadline:
                if self._process.poll() is not None:
                    raise RuntimeError(f"the operator ended with {self._process.returncode}")
                try:
                    if (await http.get(f"{self._url}/readyz")).is_success:
                        return
                except httpx.HTTPError:
                    pass  # it does not listen yet
                await asyncio.sleep(0.1)
        raise RuntimeError("the operator does not become ready")

    async def wait_acting(self) -> None:
        """Return when it leads and has read everything: one that stands by is ready, too."""
        await self.wait_ready()
        while "belvedere_leader 1.0" not in await self.metrics():  # noqa: ASYNC110 - another process says so, when asked
            await asyncio.sleep(0.1)
        await self.wait_ready()

    async def metrics(self) -> str:
        """Return its metrics."""
        async with httpx.AsyncClient(trust_env=False, timeout=60) as http:
            return (await http.get(f"{self._url}/metrics")).text

    async def writes(self) -> dict[str, float]:
        """Return how many writes it has asked for, by kind."""
        found: dict[str, float] = {}
        for line in (await self.metrics()).splitlines():
            if match := WRITES.match(line):
                found[match.group(1)] = found.get(match.group(1), 0.0) + float(match.group(2))
        return found

    async def wait_quiet(self) -> None:
        """Return when it has written nothing for a while: what follows from the last object is done then."""
        before: dict[str, float] = {}
        while (after := await self.writes()) != before:
            before = after
            await asyncio.sleep(15)

    async def reconciled(self, controller: str) -> float:
        """Return how many reconciles of a controller have ended."""
        name = f'belvedere_reconcile_seconds_count{{controller="{controller}"}} '
        return next(
            (float(line.split()[-1]) for line in (await self.metrics()).splitlines() if line.startswith(name)), 0
        )

    async def wait_reconciled(self, controller: str, count: int) -> None:
        """Return when so many reconciles of a controller have ended."""
        while await self.reconciled(controller) < count:  # noqa: ASYNC110 - another process says so, when asked
            await asyncio.sleep(0.1)

    def memory_mib(self, figure: str) -> float:
        """Return a figure of the process's memory: VmHWM is the most it ever had, VmRSS what it has."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(figure)) / 1024
