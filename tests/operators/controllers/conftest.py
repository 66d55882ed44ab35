"""A bench for one controller: the real embedded store and artifact store, a clock moved by hand, answers for HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from belvedere_operators.controllers.context import Context, Settings
from belvedere_operators.runtime import Caches, FakeClock
from belvedere_platform.artifacts import ArtifactStore
from belvedere_platform.errors import NotFound
from belvedere_platform.resources.base import API_VERSION
from belvedere_platform.store import Kind, Manifest
from belvedere_platform.store.embedded import EmbeddedStore
from belvedere_platform.store.kinds import EVENT

NAMESPACE = "default"


class Bench:
    """Everything around a reconciler."""

    def __init__(self, store: EmbeddedStore, clock: FakeClock, folder: Path) -> None:
        self.store, self.clock = store, clock
        self.artifacts = ArtifactStore(str(folder / "artifacts"))
        self.answer: Callable[[httpx.Request], httpx.Response] = self.refuse
        self.requests: list[httpx.Request] = []
        self.context = Context(
            store=store,
            caches=Caches(store, clock=clock),
            clock=clock,
            settings=Settings(
                instance="bench",
                artifacts_url=self.artifacts.url,
                store_url=f"sqlite:///{folder}/store.db",
                home=str(folder),
                prometheus_url="http://prometheus",
                toolchain={"onnxruntime": "1.0"},
            ),
        )
        self.context.__dict__["http"] = httpx.AsyncClient(transport=httpx.MockTransport(self._respond))

    def _respond(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        return self.answer(request)

    @staticmethod
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("connection refused", request=request)

    async def apply(self, kind: str, name: str, spec: dict[str, Any], **more: Any) -> Manifest:
        """Apply one of our resources."""
        metadata = {"name": name, "namespace": NAMESPACE, **more}
        manifest = {"apiVersion": API_VERSION, "kind": kind, "metadata": metadata, "spec": spec}
        return await self.store.apply(manifest, field_manager="test")

    async def get(self, kind: Kind, name: str) -> Manifest | None:
        try:
            return await self.store.get(kind, name, NAMESPACE)
        except NotFound:
            return None

    async def set_status(self, kind: Kind, name: str, **status: Any) -> None:
        """Write a child's status, as whoever acts on it would."""
        manifest = {"apiVersion": kind.api_version, "kind": kind.kind, "status": status}
        manifest["metadata"] = {"name": name, "namespace": NAMESPACE}
        await self.store.apply_status(manifest, field_manager="executor")

    async def status(self, kind: Kind, name: str) -> dict[str, Any]:
        manifest = await self.store.get(kind, name, NAMESPACE)
        return manifest.get("status") or {}

    async def condition(self, kind: Kind, name: str, type_: str) -> tuple[str, str, str]:
        """Return status, reason and message."""
        for one in (await self.status(kind, name))["conditions"]:
            if one["type"] == type_:
                return one["status"], one["reason"], one["message"]
        raise AssertionError(f"{name} has no condition {type_}")

    async def events(self) -> list[tuple[str, str, int]]:
        listing = await self.store.list(EVENT, NAMESPACE)
        return sorted((one["type"], one["reason"], one["count"]) for one in listing.items)


@pytest.fixture
async def make_bench(tmp_path: Path) -> AsyncIterator[Callable[[str], Bench]]:
    """Make a bench in a folder of its own."""
    made: list[Bench] = []

    def make(name: str) -> Bench:
        clock = FakeClock()
        folder = tmp_path / name
        folder.mkdir()
        made.append(Bench(EmbeddedStore(folder / "store.db", clock=clock), clock, folder))
        return made[-1]

    yield make
    for bench in made:
        await bench.context.http.aclose()
        await bench.store.close()


@pytest.fixture
def bench(make_bench: Callable[[str], Bench]) -> Bench:
    return make_bench("bench")
