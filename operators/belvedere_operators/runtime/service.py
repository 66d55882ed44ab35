"""The control plane as one running thing: caches, controllers and executors start together and end together."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from belvedere_operators.runtime.reflector import Caches


class Runnable(Protocol):
    """A controller, an executor's loop or a server: works until it is cancelled."""

    name: str

    async def run(self) -> None:
        """Work until cancelled."""
        ...


class ControlPlane:
    """Runs the reflectors and everything that reads them. `ready` is set when every cache has been filled."""

    def __init__(self, caches: Caches, runnables: Sequence[Runnable]) -> None:
        self.ready = asyncio.Event()
        self._caches = caches
        self._runnables = tuple(runnables)
        self._stop = asyncio.Event()

    def stop(self) -> None:
        """Ask `run` to end."""
        self._stop.set()

    def problems(self) -> list[str]:
        """Say of each kind that has not been read yet why not, as far as that is known."""
        return [
            f"{reflector.kind.plural}: {reflector.problem}"
            for reflector in self._caches.all()
            if reflector.problem and not reflector.synced.is_set()
        ]

    async def run(self) -> None:
        """Run until `stop` or until one part fails, then cancel the others and wait for them. Raises the first failure."""
        try:
            await self._run_all()
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from failures

    async def _run_all(self) -> None:
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(reflector.run(), name=f"reflector {reflector.kind.plural}")
                for reflector in self._caches.all()
            ]
            tasks += [group.create_task(runnable.run(), name=runnable.name) for runnable in self._runnables]
            waiting = group.create_task(self._wait_ready())
            await self._stop.wait()
            for task in (*tasks, waiting):
                task.cancel()

    async def _wait_ready(self) -> None:
        await self._caches.wait_synced()
        self.ready.set()
