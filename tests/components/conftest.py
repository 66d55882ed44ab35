"""What the tests on a real API server share."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from kubernetes import client, config


@pytest.fixture
async def namespace(kubeconfig: Path) -> AsyncIterator[str]:
    """A namespace of this test's own."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    with config.new_client_from_config(str(kubeconfig)) as api:
        namespaces = client.CoreV1Api(api)
        await asyncio.to_thread(namespaces.create_namespace, {"metadata": {"name": name}})
        yield name
        await asyncio.to_thread(namespaces.delete_namespace, name)
