"""A real Prometheus finds a failing candidate, a real Alertmanager tells the operator, and the operator acts."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from aiohttp import web

from belvedere_operators.alerts.alertmanager import alertmanager_config
from belvedere_operators.alerts.webhook import AlertWebhook
from belvedere_operators.controllers.context import Context, Settings
from belvedere_operators.controllers.modelservice.controller import model_service_controller
from belvedere_operators.runtime import Caches, ControlPlane, SystemClock
from belvedere_platform.ports import free_port
from belvedere_platform.resources import GatewayRoute
from belvedere_platform.store.embedded import EmbeddedStore
from belvedere_platform.store.kinds import CONFIG_MAP, MODEL_SERVICE, PROMETHEUS_RULE
from belvedere_platform.telemetry import gateway_metrics as metrics

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed"),
    pytest.mark.skipif(shutil.which("prometheus-alertmanager") is None, reason="Alertmanager is not installed"),
]

API = "belvedere.dev/v1alpha1"
DIGEST = "sha256:" + "c" * 64
SECRET = "the secret of this test"
REQUESTS_PER_SECOND = 60
PATIENCE_SECONDS = 120.0


def make(folder: Path) -> None:
    folder.mkdir()


def said(log: Path) -> str:
    return log.read_text()


class Exporter:
    """Counts requests as Envoy would: by the route in the store, and with errors for a version that fails."""

    def __init__(self, store: EmbeddedStore) -> None:
        self._store = store
        self._last = time.monotonic()
        self._requests: dict[str, float] = {}
        self._errors: dict[str, float] = {}
        self.error_rate = {"v2": 0.5}

    async def handle(self, request: web.Request) -> web.Response:
        now = time.monotonic()
        for version, weight in (await self._weights()).items():
            count = (now - self._last) * REQUESTS_PER_SECOND * weight / 100
            self._requests[version] = self._requests.get(version, 0.0) + count
            self._errors[version] = self._errors.get(version, 0.0) + count * self.error_rate.get(version, 0.0)
        self._last = now
        return web.Response(text="\n".join(self._lines()) + "\n")

    async def _weights(self) -> dict[str, int]:
        for one in (await self._store.list(CONFIG_MAP, "shop")).items:
            if "route.json" in one.get("data", {}):
                route = GatewayRoute.model_validate_json(one["data"]["route.json"])
                return {entry.version: entry.weight for entry in route.versions}
        return {}

    def _lines(self) -> list[str]:
        lines: list[str] = []
        for version, value in self._requests.items():
            labels = f'namespace="shop",service="search",version="{version}",protocol="http"'
            requests, errors = int(value), int(self._errors[version])
            lines += [
                f"{metrics.HTTP_REQUESTS}{{{labels}}} {requests}",
                f'{metrics.HTTP_ANSWERS}{{{labels},envoy_response_code_class="2"}} {requests - errors}',
                f'{metrics.HTTP_ANSWERS}{{{labels},envoy_response_code_class="5"}} {errors}',
                f'{metrics.LATENCY}_bucket{{{labels},le="100"}} {requests}',
                f'{metrics.LATENCY}_bucket{{{labels},le="+Inf"}} {requests}',
                f"{metrics.LATENCY}_count{{{labels}}} {requests}",
                f"{metrics.IN_FLIGHT}{{{labels}}} 1",
                f"{metrics.ROUTABLE_REPLICAS}{{{labels}}} 1",
            ]
        return lines


@contextlib.asynccontextmanager
async def serving(*routes: Callable[[web.Application], None]) -> AsyncIterator[int]:
    """Serve routes on a free port."""
    application = web.Application()
    for add in routes:
        add(application)
    runner = web.AppRunner(application)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield port
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def running(*command: str, ready: str, log: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a program until the block ends; entered when it says that it is ready."""
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(*command, stdout=output, stderr=output)
    try:
        async with httpx.AsyncClient(timeout=PATIENCE_SECONDS) as client:
            for _ in range(round(10 * PATIENCE_SECONDS)):
                assert process.returncode is None, said(log)
                with contextlib.suppress(httpx.HTTPError):
                    if (await client.get(ready)).status_code == 200:
                        break
                await asyncio.sleep(0.1)
            else:
                pytest.fail(f"{command[0]} was not ready in {PATIENCE_SECONDS:g} s: {said(log)}")
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


@contextlib.asynccontextmanager
async def alertmanager(folder: Path, webhook_port: int, secret: str) -> AsyncIterator[int]:
    make(folder)
    (folder / "secret").write_text(secret)
    config = alertmanager_config(
        webhook_url=f"http://127.0.0.1:{webhook_port}/alerts", secret_file=str(folder / "secret")
    )
    (folder / "alertmanager.yml").write_text(yaml.safe_dump(config))
    port = free_port()
    command = (
        "prometheus-alertmanager",
        f"--config.file={folder / 'alertmanager.yml'}",
        f"--storage.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--cluster.listen-address=",
    )
    async with running(*command, ready=f"http://127.0.0.1:{port}/-/ready", log=folder / "log"):
        yield port


@contextlib.asynccontextmanager
async def prometheus(
    folder: Path, exporter_port: int, alertmanager_port: int
) -> AsyncIterator[tuple[int, asyncio.subprocess.Process]]:
    make(folder)
    (folder / "rules.yml").write_text(yaml.safe_dump({"groups": []}))
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(folder / "rules.yml")],
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": [f"127.0.0.1:{alertmanager_port}"]}]}]},
        "scrape_configs": [
            {
                "job_name": "envoy",
                "honor_labels": True,
                "static_configs": [{"targets": [f"127.0.0.1:{exporter_port}"]}],
            }
        ],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = free_port()
    command = (
        "prometheus",
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--storage.tsdb.retention.time=1h",
    )
    async with running(*command, ready=f"http://127.0.0.1:{port}/-/ready", log=folder / "log") as process:
        yield port, process


def service(version: str) -> dict[str, Any]:
    """Without gates: nothing but an alert can abort this rollout."""
    return {
        "apiVersion": API,
        "kind": "ModelService",
        "metadata": {"name": "search", "namespace": "shop"},
        "spec": {
            "model": "clip",
            "version": version,
            "rollout": {
                "intervalSeconds": 2,
                "steps": [{"weight": 20, "holdSeconds": 120}],
                "gates": {"errors": None, "latency": None},
            },
        },
    }


async def add_version(store: EmbeddedStore, version: str) -> None:
    """Make a version with an engine and one ready replica."""
    name = f"{version}-onnxruntime-fp32"
    manifests: list[dict[str, Any]] = [
        {
            "kind": "ModelVersion",
            "metadata": {"name": version, "namespace": "shop"},
            "spec": {"model": "clip", "digest": DIGEST, "evaluation": {"passed": True}},
        },
        {"kind": "Engine", "metadata": {"name": name, "namespace": "shop"}, "spec": {"modelVersion": version}},
    ]
    for manifest in manifests:
        await store.apply({"apiVersion": API, **manifest}, field_manager="test")
    ready = {"type": "Ready", "status": "True", "reason": "Built", "message": ""}
    status = {"digest": DIGEST, "conditions": [ready]}
    engine = {"apiVersion": API, "kind": "Engine", "metadata": {"name": name, "namespace": "shop"}, "status": status}
    await store.apply_status(engine, field_manager="test")
    labels = {"belvedere.dev/service": "search", "belvedere.dev/version": version}
    await store.apply(
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": f"search-{version}-0", "namespace": "shop", "labels": labels},
            "addressType": "IPv4",
            "ports": [{"name": "http", "port": 1}, {"name": "grpc", "port": 2}],
            "endpoints": [{"addresses": ["127.0.0.1"], "conditions": {"ready": True}}],
        },
        field_manager="test",
    )


async def until(store: EmbeddedStore, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Return the status of the service once it is as wished."""
    seen: dict[str, Any] = {}
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            listing = await store.list(MODEL_SERVICE, "shop")
            for one in listing.items:
                seen = one.get("status", {})
                if holds(seen):
                    return seen
            async for event in store.watch(MODEL_SERVICE, "shop", resource_version=listing.resource_version):
                seen = event.object.get("status", {})
                if holds(seen):
                    return seen
    except TimeoutError:
        pytest.fail(f"not within {PATIENCE_SECONDS:g} s; the status is {seen}")
    raise AssertionError("the watch ended")


async def copy_rules(store: EmbeddedStore, folder: Path, process: asyncio.subprocess.Process) -> None:
    """Do what the executor of PrometheusRules does: write the file and ask for a reload, whenever the rules change."""
    listing = await store.list(PROMETHEUS_RULE, "shop")
    async for event in store.watch(PROMETHEUS_RULE, "shop", resource_version=listing.resource_version):
        if event.type in ("ADDED", "MODIFIED"):
            (folder / "rules.yml").write_text(yaml.safe_dump(event.object["spec"]))
            process.send_signal(signal.SIGHUP)


@contextlib.asynccontextmanager
async def operator(store: EmbeddedStore, prometheus_port: int) -> AsyncIterator[None]:
    """Run the ModelService controller as the control plane does."""
    clock = SystemClock()
    caches = Caches(store, clock=clock)
    settings = Settings(
        instance="test",
        artifacts_url="file:///artifacts",
        store_url="sqlite:///store",
        prometheus_url=f"http://127.0.0.1:{prometheus_port}",
    )
    context = Context(store=store, caches=caches, clock=clock, settings=settings)
    plane = ControlPlane(caches, [model_service_controller(context)])
    task = asyncio.create_task(plane.run())
    try:
        yield
    finally:
        plane.stop()
        await task
        await context.http.aclose()


def phase_is(phase: str) -> Callable[[dict[str, Any]], bool]:
    return lambda status: (status.get("rollout") or {}).get("phase") == phase


async def test_a_failing_candidate_is_aborted_by_its_alert(tmp_path: Path) -> None:
    store = EmbeddedStore(tmp_path / "store.sqlite")
    exporter = Exporter(store)
    webhook = AlertWebhook(store, clock=SystemClock(), secret=SECRET)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(store.close)
        exporter_port = await stack.enter_async_context(
            serving(lambda application: application.router.add_get("/metrics", exporter.handle))
        )
        webhook_port = await stack.enter_async_context(serving(webhook.add_to))
        alertmanager_port = await stack.enter_async_context(
            alertmanager(tmp_path / "alertmanager", webhook_port, SECRET)
        )
        port, process = await stack.enter_async_context(
            prometheus(tmp_path / "prometheus", exporter_port, alertmanager_port)
        )
        copying = asyncio.create_task(copy_rules(store, tmp_path / "prometheus", process))
        await stack.enter_async_context(operator(store, port))
        for version in ("v1", "v2"):
            await add_version(store, version)
        await store.apply(service("v1"), field_manager="test")
        await until(store, lambda status: (status.get("stable") or {}).get("routableReplicas") == 1)
        await store.apply(service("v2"), field_manager="test")
        await until(store, phase_is("Progressing"))
        started = time.monotonic()
        status = await until(store, phase_is("Aborted"))
        took_seconds = time.monotonic() - started
        copying.cancel()
        abort = next(one for one in status["decisions"] if one["decision"] == "Abort")
        assert abort["signal"] == "alert:CandidateErrorBudgetBurn"
        assert (await exporter._weights()) == {"v1": 100}
        print(f"first weight to abort: {took_seconds:.1f} s")


async def test_alertmanager_with_the_wrong_secret_is_not_heard(tmp_path: Path) -> None:
    store = EmbeddedStore(tmp_path / "store.sqlite")
    webhook = AlertWebhook(store, clock=SystemClock(), secret=SECRET)
    answered: asyncio.Queue[int] = asyncio.Queue()

    @web.middleware
    async def watch(request: web.Request, handler: Any) -> web.StreamResponse:
        response: web.StreamResponse = await handler(request)
        answered.put_nowait(response.status)
        return response

    await store.apply(service("v1"), field_manager="test")
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(store.close)
        webhook_port = await stack.enter_async_context(
            serving(webhook.add_to, lambda application: application.middlewares.append(watch))
        )
        port = await stack.enter_async_context(alertmanager(tmp_path / "alertmanager", webhook_port, "another secret"))
        labels = {"alertname": "A", "namespace": "shop", "service": "search", "belvedere_action": "abort"}
        async with httpx.AsyncClient(timeout=PATIENCE_SECONDS) as client:
            posted = await client.post(f"http://127.0.0.1:{port}/api/v2/alerts", json=[{"labels": labels}])
            assert posted.status_code == 200
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert await answered.get() == 401
        names = [one["metadata"]["name"] for one in (await store.list(CONFIG_MAP, "shop")).items]
        assert "search-alerts" not in names
