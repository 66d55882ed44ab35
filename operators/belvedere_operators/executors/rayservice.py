"""Make all RayServices one Serve config on the local Ray, and say of each how it does."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from belvedere_operators.executors.ray_dashboard import RayDashboard
from belvedere_operators.executors.status import conditions_after, write_status
from belvedere_operators.executors.workload import Machine
from belvedere_operators.runtime import After, Controller, Key, key_of
from belvedere_platform.errors import InvalidInput, Unavailable
from belvedere_platform.store import Manifest
from belvedere_platform.store.kinds import RAY_SERVICE

log = logging.getLogger(__name__)

MANAGER = "belvedere-executor-rayservice"
POLL_SECONDS = 1.0
SETTLED_POLL_SECONDS = 2.0
SHARED_SECONDS = 0.4
GRPC_SERVICER = "belvedere_serving.server.grpc_service.add_to_server"
Application = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """What holds for the whole Serve instance; it cannot change while it runs."""

    http_port: int
    grpc_port: int
    grpc_servicers: tuple[str, ...] = (GRPC_SERVICER,)


def application_name(key: Key) -> str:
    """Return the name of a RayService's application on the shared Serve."""
    return f"{key.namespace}.{key.name}"


def application_of(manifest: Manifest) -> Application:
    """Return the one application of a RayService under its name on the shared Serve. Raises InvalidInput."""
    text = manifest["spec"].get("serveConfigV2") or ""
    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InvalidInput(f"spec.serveConfigV2 is not YAML: {error}") from error
    applications = config.get("applications") if isinstance(config, dict) else None
    only = applications[0] if isinstance(applications, list) and len(applications) == 1 else None
    if not isinstance(only, dict) or "import_path" not in only:
        raise InvalidInput("spec.serveConfigV2.applications must hold one application with an import_path")
    name = application_name(key_of(manifest))
    return {**only, "name": name, "route_prefix": f"/{name}"}


def serve_config(
    settings: ServeSettings, wanted: Mapping[str, Application | None], deployed: Mapping[str, Application]
) -> dict[str, Any]:
    """Return the config of all. An application that is wanted but whose config is wrong (None) stays as it is deployed."""
    applications = [
        application if application is not None else deployed[name]
        for name, application in sorted(wanted.items())
        if application is not None or name in deployed
    ]
    return {
        "proxy_location": "HeadOnly",
        "http_options": {"host": "127.0.0.1", "port": settings.http_port},
        "grpc_options": {"port": settings.grpc_port, "grpc_servicer_functions": list(settings.grpc_servicers)},
        "applications": applications,
    }


def deployed_applications(details: Mapping[str, Any]) -> dict[str, Application]:
    """Return the configs that Serve holds now, without those it is removing."""
    return {
        name: application["deployed_app_config"]
        for name, application in details.get("applications", {}).items()
        if application.get("deployed_app_config") and application.get("status") != "DELETING"
    }


def covers(deployed: Any, wanted: Any) -> bool:
    """Whether a deployed config has every field that is wanted; Serve may have filled in more."""
    if isinstance(wanted, Mapping) and isinstance(deployed, Mapping):
        return all(name in deployed and covers(deployed[name], value) for name, value in wanted.items())
    if isinstance(wanted, list) and isinstance(deployed, list):
        return len(wanted) == len(deployed) and all(covers(d, w) for d, w in zip(deployed, wanted, strict=True))
    return bool(deployed == wanted)


def service_status(
    manifest: Manifest, details: Mapping[str, Any], *, ray: RayDashboard, problem: str, now: Any
) -> dict[str, Any]:
    """Return the status of a RayService as KubeRay writes it."""
    name = application_name(key_of(manifest))
    application = details.get("applications", {}).get(name)
    deployments = application.get("deployments", {}) if application else {}
    running = sum(
        replica.get("state") == "RUNNING" for one in deployments.values() for replica in one.get("replicas", ())
    )
    status = application["status"] if application else "NOT_STARTED"
    ready = status == "RUNNING" and running > 0
    message = problem or (application or {}).get("message") or "" if not ready or problem else ""
    conditions = (
        ("Ready", ready, "NonZeroServeEndpoints" if running else "ZeroServeEndpoints", message),
        (
            "UpgradeInProgress",
            status == "DEPLOYING" and bool(running),
            "Deploying" if status == "DEPLOYING" else "NoPendingCluster",
            "",
        ),
    )
    return {
        "observedGeneration": manifest["metadata"].get("generation"),
        "serviceStatus": "Running" if ready else "",
        "numServeEndpoints": running,
        "activeServiceStatus": {
            "rayClusterName": "local",
            "applicationStatuses": {name: _application_status(status, message, deployments)},
            "rayClusterStatus": {
                "state": "ready",
                "head": {"serviceIP": ray.host, "podIP": ray.host},
                "endpoints": {"dashboard": ray.port},
            },
        },
        "conditions": conditions_after(manifest, conditions, now=now),
    }


def _application_status(status: str, message: str, deployments: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "status": status,
        "message": message,
        "serveDeploymentStatuses": {
            deployment: {"status": one.get("status"), "message": one.get("message", "")}
            for deployment, one in sorted(deployments.items())
        },
    }


@dataclass(kw_only=True)
class RayServiceExecutor:
    """Joins the steps: what all RayServices want, what Serve holds, one config, the status of one."""

    machine: Machine
    ray: RayDashboard
    settings: ServeSettings
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    _seen: tuple[float, dict[str, Any]] | None = None
    _refused: tuple[dict[str, Any], str] | None = None
    _waiting: str = ""
    """Why Ray could not be asked last, so that it is logged once."""

    async def reconcile(self, key: Key) -> After | None:
        """Bring Serve to what all RayServices want, and write the status of this one."""
        manifest = self.machine.caches.of(RAY_SERVICE).get(key)
        try:
            async with self._lock:
                details, problem = await self._converge()
        except Unavailable as error:
            if self._waiting != str(error):
                self._waiting = str(error)
                log.warning("RayServices wait: %s", error)
            if manifest is not None:
                await self._write_waiting(manifest, str(error))
            return After(POLL_SECONDS)
        self._waiting = ""
        if manifest is None:
            return None
        try:
            application_of(manifest)
        except InvalidInput as error:
            problem = str(error)
        status = service_status(manifest, details, ray=self.ray, problem=problem, now=self.machine.clock())
        await write_status(self.machine.store, manifest, status, manager=MANAGER)
        return After(SETTLED_POLL_SECONDS if status["serviceStatus"] else POLL_SECONDS)

    async def _converge(self) -> tuple[dict[str, Any], str]:
        details = await self._details()
        deployed = deployed_applications(details)
        config = serve_config(self.settings, self._wanted(), deployed)
        wanted = {application["name"]: application for application in config["applications"]}
        if wanted.keys() == deployed.keys() and all(covers(deployed[name], wanted[name]) for name in wanted):
            return details, ""
        if self._refused is not None and self._refused[0] == config:
            return details, self._refused[1]
        try:
            await self.ray.deploy(config)
        except InvalidInput as error:
            self._refused = (config, str(error))
            return details, str(error)
        self._refused, self._seen = None, None
        log.info("deployed the Serve applications %s", ", ".join(sorted(wanted)) or "(none)")
        return await self._details(), ""

    def _wanted(self) -> dict[str, Application | None]:
        wanted: dict[str, Application | None] = {}
        for manifest in self.machine.caches.of(RAY_SERVICE).list():
            if manifest["metadata"].get("deletionTimestamp"):
                continue
            try:
                wanted[application_name(key_of(manifest))] = application_of(manifest)
            except InvalidInput:
                wanted[application_name(key_of(manifest))] = None
        return wanted

    async def _details(self) -> dict[str, Any]:
        now = self.machine.clock.monotonic()
        if self._seen is None or now - self._seen[0] > SHARED_SECONDS:
            self._seen = (now, await self.ray.serve_details())
        return self._seen[1]

    async def _write_waiting(self, manifest: Manifest, message: str) -> None:
        """Say that Ray does not answer, and keep what is known of the replicas: they may well go on."""
        conditions = conditions_after(
            manifest, (("Ready", False, "RayUnavailable", message),), now=self.machine.clock()
        )
        status = {**manifest.get("status", {}), "serviceStatus": "", "conditions": conditions}
        await write_status(self.machine.store, manifest, status, manager=MANAGER)


def ray_service_executor(machine: Machine, ray: RayDashboard, settings: ServeSettings) -> Controller:
    """Return the executor of RayServices."""
    executor = RayServiceExecutor(machine=machine, ray=ray, settings=settings)
    controller = Controller(
        name="executor-rayservice",
        kind=RAY_SERVICE,
        reconcile=executor.reconcile,
        caches=machine.caches,
        clock=machine.clock,
        workers=2,
    )
    # A RayService that was deleted while nobody looked leaves its application behind: look once, whatever there is.
    controller.queue.add(Key("", ""))
    return controller
