"""A ModelService for rules, and a store with it for the webhook."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from belvedere_operators.runtime import FakeClock
from belvedere_platform.resources import ModelService
from belvedere_platform.store.embedded import EmbeddedStore

SERVICE = {
    "apiVersion": "belvedere.dev/v1alpha1",
    "kind": "ModelService",
    "metadata": {"name": "search", "namespace": "shop"},
    "spec": {
        "model": "clip",
        "version": "v1",
        "slo": {"availability": 0.98, "latency": {"thresholdMilliseconds": 100, "objective": 0.95}},
        "rollout": {"intervalSeconds": 2},
        "scaling": {"maxReplicas": 3, "targetInFlight": 4},
    },
}


@pytest.fixture
def spec():
    return ModelService.model_validate(SERVICE).spec


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def store(tmp_path: Path, clock: FakeClock) -> AsyncIterator[EmbeddedStore]:
    opened = EmbeddedStore(tmp_path / "store.sqlite", clock=clock)
    await opened.apply(SERVICE, field_manager="test")
    yield opened
    await opened.close()
