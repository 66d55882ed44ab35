"""A real embedded store, real caches and real processes below a temporary home."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from belvedere_operators.executors.identity import Identity, find_instance, wait_gone
from belvedere_operators.executors.workload import Machine
from belvedere_operators.runtime import Caches, ControlPlane, Runnable, SystemClock
from belvedere_platform.store import Kind, Manifest
from belvedere_platform.store.embedded import EmbeddedStore

PATIENCE_SECONDS = 90
"""What real processes may take on a busy machine."""


@dataclass(kw_only=True)
class World:
    """A home in which control planes come and go."""

    home: Path
    store: EmbeddedStore
    instance: str

    @contextlib.asynccontextmanager
    async def control_plane(self, *executors: Callable[[Machine], Runnable]) -> AsyncIterator[None]:
        """Run executors for the time of a with block."""
        machine = Machine(
            store=self.store,
            caches=Caches(self.store, clock=SystemClock()),
            clock=SystemClock(),
            home=self.home,
            instance=self.instance,
            environment={"PATH": os.environ["PATH"], "BELVEDERE_INSTANCE": self.instance},
        )
        plane = ControlPlane(machine.caches, [executor(machine) for executor in executors])
        task = asyncio.create_task(plane.run())
        try:
            yield
        finally:
            plane.stop()
            await task

    async def apply(self, manifest: Manifest) -> Manifest:
        """Apply as a user does."""
        return await self.store.apply(manifest, field_manager="test")

    async def until(
        self, kind: Kind, name: str, holds: Callable[[Manifest], Any], *, timeout_seconds: float = PATIENCE_SECONDS
    ) -> Manifest:
        """Wait until an object is as wished."""
        listing = await self.store.list(kind, "default")
        for item in listing.items:
            if item["metadata"]["name"] == name and holds(item):
                return item
        seen: Manifest = {}
        try:
            async with asyncio.timeout(timeout_seconds):
                async for event in self.store.watch(kind, "default", resource_version=listing.resource_version):
                    if event.type == "BOOKMARK" or event.object["metadata"]["name"] != name:
                        continue
                    seen = event.object
                    if holds(seen):
                        return seen
        except TimeoutError:
            raise AssertionError(f"{kind.kind} {name} did not become as wished: {seen.get('status')}") from None
        raise AssertionError("the watch ended")

    async def gone(self, identities: set[Identity], *, timeout_seconds: float = PATIENCE_SECONDS) -> None:
        """Wait until processes have ended."""
        for identity in identities:
            assert await wait_gone(identity, timeout_seconds)

    def running(self) -> set[Identity]:
        """Return the processes of this installation."""
        return find_instance(self.instance)

    async def grown_to(self, num_processes: int) -> set[Identity]:
        """Wait until so many processes run: a command comes a moment after its supervisor."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while len(found := self.running()) != num_processes:  # noqa: ASYNC110 - other processes, no event
                await asyncio.sleep(0.01)
        return found


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    instance = f"test-{uuid.uuid4().hex[:8]}"
    store = EmbeddedStore(tmp_path / "store.sqlite")
    world = World(home=tmp_path, store=store, instance=instance)
    yield world
    await store.close()
    for identity in world.running():
        identity.send(signal.SIGKILL)
