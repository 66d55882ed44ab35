"""Write each PrometheusRule as a rule file and have Prometheus read it; a rule that is wrong never replaces one that is right."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import yaml

from belvedere_operators.executors.process import write_atomically
from belvedere_operators.executors.status import conditions_after, write_status
from belvedere_operators.executors.workload import Machine
from belvedere_operators.runtime import After, Controller, EventRecorder, Key
from belvedere_platform.errors import InvalidInput, Unavailable
from belvedere_platform.store import Manifest
from belvedere_platform.store.kinds import PROMETHEUS_RULE

log = logging.getLogger(__name__)

MANAGER = "belvedere-executor-prometheusrule"
RETRY_SECONDS = 2.0


def rule_file_name(key: Key) -> str:
    """Return the name of the file of a PrometheusRule; `_` is in no Kubernetes name."""
    return f"{key.namespace}_{key.name}.yaml"


def rule_file(manifest: Manifest) -> bytes:
    """Return the rule file of a PrometheusRule."""
    return yaml.safe_dump({"groups": manifest["spec"].get("groups", [])}, sort_keys=False, allow_unicode=True).encode()


async def check_rules(content: bytes) -> None:
    """Ask promtool. Raises InvalidInput with what it says, Unavailable when it is not installed."""
    promtool = shutil.which("promtool")
    if promtool is None:
        raise Unavailable("promtool is not installed: `belvedere doctor` says how to get it")
    with tempfile.NamedTemporaryFile(suffix=".yaml") as file:
        file.write(content)
        file.flush()
        process = await asyncio.create_subprocess_exec(
            promtool, "check", "rules", file.name, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        said, _ = await process.communicate()
    if process.returncode != 0:
        lines = [line.strip() for line in said.decode(errors="replace").splitlines() if line.strip()]
        told = [line.replace(file.name, "spec") for line in lines if not line.startswith("Checking")]
        raise InvalidInput(f"promtool refuses the rules: {'; '.join(told)}")


@dataclass(kw_only=True)
class PrometheusRuleExecutor:
    """Joins the steps for one PrometheusRule."""

    machine: Machine
    directory: Path
    prometheus_url: str
    http: httpx.AsyncClient
    events: EventRecorder
    _loaded: dict[str, str] = field(default_factory=dict)
    """Digest by file of what Prometheus is known to have read since this control plane began."""

    async def reconcile(self, key: Key) -> After | None:
        """Write, check and load one rule file, or remove it."""
        manifest = self.machine.caches.of(PROMETHEUS_RULE).get(key)
        path = self.directory / rule_file_name(key)
        if manifest is None or manifest["metadata"].get("deletionTimestamp"):
            if path.exists():
                path.unlink()
                self._loaded.pop(path.name, None)
                await self._reload()
            return None
        content = rule_file(manifest)
        digest = hashlib.sha256(content).hexdigest()
        if self._loaded.get(path.name) == digest:
            return None
        try:
            await check_rules(content)
            self.directory.mkdir(parents=True, exist_ok=True)
            write_atomically(path, content, 0o644)
            await self._reload()
        except InvalidInput as error:
            await self.events.record(manifest, "Warning", "RulesRefused", str(error))
            await self._write(manifest, False, "RulesRefused", str(error))
            return None
        except Unavailable as error:
            await self._write(manifest, False, "PrometheusUnavailable", str(error))
            return After(RETRY_SECONDS)
        self._loaded[path.name] = digest
        await self._write(manifest, True, "Loaded", f"{path.name} is loaded")
        return None

    async def _write(self, manifest: Manifest, true: bool, reason: str, message: str) -> None:
        conditions = conditions_after(manifest, (("Loaded", true, reason, message),), now=self.machine.clock())
        status = {"observedGeneration": manifest["metadata"].get("generation"), "conditions": conditions}
        await write_status(self.machine.store, manifest, status, manager=MANAGER)

    async def _reload(self) -> None:
        url = f"{self.prometheus_url}/-/reload"
        try:
            response = await self.http.post(url)
        except httpx.HTTPError as error:
            raise Unavailable(f"Prometheus at {url} does not answer: {type(error).__name__} {error}") from error
        if response.is_error:
            raise Unavailable(f"Prometheus at {url} answered {response.status_code}: {response.text.strip()[:300]}")

    def known_keys(self) -> set[Key]:
        """Return the keys of the rule files that are there."""
        return {Key(*path.stem.split("_", 1)) for path in self.directory.glob("*_*.yaml")}


def prometheus_rule_executor(
    machine: Machine, *, directory: Path, prometheus_url: str, http: httpx.AsyncClient
) -> Controller:
    """Return the executor of PrometheusRules."""
    executor = PrometheusRuleExecutor(
        machine=machine,
        directory=directory,
        prometheus_url=prometheus_url,
        http=http,
        events=EventRecorder(machine.store, clock=machine.clock, component=MANAGER),
    )
    controller = Controller(
        name="executor-prometheusrule",
        kind=PROMETHEUS_RULE,
        reconcile=executor.reconcile,
        caches=machine.caches,
        clock=machine.clock,
    )
    for key in executor.known_keys():
        controller.queue.add(key)
    return controller
