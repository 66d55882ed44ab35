"""An embedded store of this test's own, and objects for it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from belvedere_operators.runtime import FakeClock
from belvedere_platform.store import Manifest
from belvedere_platform.store.embedded import EmbeddedStore


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[EmbeddedStore]:
    opened = EmbeddedStore(tmp_path / "store.db", events_kept=16)
    yield opened
    await opened.close()


@pytest.fixture
def put(store: EmbeddedStore) -> Callable[..., Awaitable[Manifest]]:
    """Apply a ConfigMap."""

    async def apply(name: str, value: str = "", **metadata: Any) -> Manifest:
        manifest = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": name, "namespace": "default", **metadata},
            "data": {"value": value},
        }
        return await store.apply(manifest, field_manager="test")

    return apply
