"""A real API server takes every example as it stands, and refuses what the rules of the definitions refuse."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import config
from kubernetes.dynamic import DynamicClient
from kubernetes.dynamic.exceptions import DynamicApiError

pytestmark = [pytest.mark.slow, pytest.mark.cluster]
EXAMPLES = sorted((Path(__file__).parents[2] / "deploy" / "examples").rglob("*.yaml"))


def tried(api: DynamicClient, namespace: str, manifest: dict[str, Any]) -> str:
    """Return what an API server has against an object, as if it were created; empty where it takes it."""
    resource = api.resources.get(api_version=manifest["apiVersion"], kind=manifest["kind"])
    try:
        api.create(
            resource, body=manifest, namespace=namespace, dry_run="All", query_params=[("fieldValidation", "Strict")]
        )
    except DynamicApiError as error:
        return str(json.loads(error.body)["message"])
    return ""


async def test_every_example_is_taken(kubeconfig: Path, namespace: str) -> None:
    manifests = {
        f"{path.parent.name}/{path.name} {number}": one
        for path in EXAMPLES
        for number, one in enumerate(yaml.safe_load_all(path.read_text()))
        if one
    }
    assert len(manifests) >= len(EXAMPLES)
    with config.new_client_from_config(str(kubeconfig)) as connection:
        api = await asyncio.to_thread(DynamicClient, connection)
        refused = {
            name: why
            for name, manifest in manifests.items()
            if (why := await asyncio.to_thread(tried, api, namespace, manifest))
        }
    assert refused == {}


async def test_what_triton_cannot_do_is_refused(kubeconfig: Path, namespace: str) -> None:
    path = next(path for path in EXAMPLES if path.name == "service-triton.yaml")
    wrong = {
        "server.models and server.plugins are for backend rayServe": {"server": {"models": ["caption"]}},
        "engine.target.runtime litert is for backend rayServe": {"engine": {"target": {"runtime": "litert"}}},
        "": {"server": {"writing": {"maxNewTokens": 7}}},
    }
    with config.new_client_from_config(str(kubeconfig)) as connection:
        api = await asyncio.to_thread(DynamicClient, connection)
        for words, change in wrong.items():
            manifest = yaml.safe_load(path.read_text())
            manifest["spec"] |= change
            why = await asyncio.to_thread(tried, api, namespace, manifest)
            assert words in why
            assert bool(why) == bool(words)
