"""A rule file is checked by the real promtool before it takes the place of another."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from belvedere_operators.executors.prometheus_rule import prometheus_rule_executor, rule_file_name
from belvedere_operators.runtime import Key
from belvedere_platform.store import Manifest
from belvedere_platform.store.kinds import EVENT, PROMETHEUS_RULE

if TYPE_CHECKING:
    from .conftest import World

TOOLS = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
pytestmark = pytest.mark.skipif(shutil.which("promtool", path=TOOLS) is None, reason="promtool is not installed")


class Prometheus(httpx.AsyncBaseTransport):
    """Counts reloads, and answers what it is told to."""

    def __init__(self) -> None:
        self.reloads = 0
        self.status = 200

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.reloads += request.url.path == "/-/reload"
        return httpx.Response(self.status, text="it is not ready")


@pytest.fixture
def prometheus(monkeypatch: pytest.MonkeyPatch) -> Prometheus:
    monkeypatch.setenv("PATH", TOOLS)
    return Prometheus()


def rule(expression: str) -> Manifest:
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "it", "namespace": "default"},
        "spec": {"groups": [{"name": "g", "rules": [{"record": "a:b", "expr": expression}]}]},
    }


def loaded(manifest: Manifest) -> dict[str, Any]:
    current = [
        entry
        for entry in manifest.get("status", {}).get("conditions", [])
        if entry["observedGeneration"] == manifest["metadata"]["generation"]
    ]
    return current[0] if current else {}


async def test_rule_is_written_reloaded_refused_and_removed(world: World, prometheus: Prometheus) -> None:
    directory = world.home / "rules"
    file = directory / rule_file_name(Key("default", "it"))
    async with httpx.AsyncClient(transport=prometheus) as http:

        def executor(machine: Any) -> Any:
            return prometheus_rule_executor(machine, directory=directory, prometheus_url="http://p", http=http)

        async with world.control_plane(executor):
            await world.apply(rule("up"))
            await world.until(PROMETHEUS_RULE, "it", lambda m: loaded(m).get("reason") == "Loaded")
            good = file.read_bytes()
            await world.apply(rule("up{"))
            seen = await world.until(PROMETHEUS_RULE, "it", lambda m: loaded(m).get("reason") == "RulesRefused")
            assert "promtool refuses the rules: " in loaded(seen)["message"]
            assert str(world.home) not in loaded(seen)["message"]
            assert (file.read_bytes(), prometheus.reloads) == (good, 1)
            events = (await world.store.list(EVENT, "default")).items
            assert [(event["type"], event["reason"]) for event in events] == [("Warning", "RulesRefused")]
        await world.store.delete(PROMETHEUS_RULE, "it", "default")
        other = file.with_name("default_other.yaml")
        other.write_text("groups: []\n")
        async with world.control_plane(executor):
            await world.apply({**rule("up"), "metadata": {"name": "new", "namespace": "default"}})
            await world.until(PROMETHEUS_RULE, "new", lambda m: loaded(m).get("reason") == "Loaded")
        assert [path.name for path in directory.iterdir()] == ["default_new.yaml"]


async def test_prometheus_that_is_away_is_told_later(world: World, prometheus: Prometheus) -> None:
    prometheus.status = 503
    async with httpx.AsyncClient(transport=prometheus) as http:

        def executor(machine: Any) -> Any:
            return prometheus_rule_executor(machine, directory=world.home, prometheus_url="http://p", http=http)

        async with world.control_plane(executor):
            await world.apply(rule("up"))
            seen = await world.until(
                PROMETHEUS_RULE, "it", lambda m: loaded(m).get("reason") == "PrometheusUnavailable"
            )
            assert "answered 503: it is not ready" in loaded(seen)["message"]
            prometheus.status = 200
            await world.until(PROMETHEUS_RULE, "it", lambda m: loaded(m).get("reason") == "Loaded")
