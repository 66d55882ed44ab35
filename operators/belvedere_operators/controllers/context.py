"""What every controller is given: the store, the caches, the clock, and how this installation is set up."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import httpx

from belvedere_operators.manifests.network import NetworkPeers
from belvedere_operators.manifests.pods import PodSettings
from belvedere_operators.manifests.raycluster import HeadStore
from belvedere_operators.runtime import Caches, Clock
from belvedere_operators.runtime.http import AiohttpTransport
from belvedere_platform.artifacts import ArtifactStore
from belvedere_platform.artifacts.layout import canonical
from belvedere_platform.resources.pod_patch import PodDefaults
from belvedere_platform.store import ObjectStore


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How this installation is set up. The same names as the options of `belvedere operator`."""

    instance: str
    artifacts_url: str
    store_url: str
    home: str = ""
    namespaces: tuple[str, ...] = ()
    """The namespaces to act on; none for all."""
    prometheus_url: str = "http://127.0.0.1:9090"
    alerts_secret: str = ""
    """Bearer secret that Alertmanager sends to the webhook."""
    gateway_url: str | None = None
    """Where clients reach the gateway; shown in status."""
    image: str = "belvedere:dev"
    cluster_cpus: float | None = None
    """CPUs that replicas may use; None when the cluster does not say."""
    accelerators: float | None = None
    """How many accelerators training may hold at a time; None when nobody counts them."""
    count_accelerators: bool = False
    """Whether the nodes say how many there are, in the place of `accelerators`."""
    workers: int = 2
    """How many objects of a kind are reconciled at a time. Most of a reconcile is waiting for the store."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """More environment for every child."""

    pod_defaults: PodDefaults = field(default_factory=PodDefaults)
    """What the installation says of the pods of children."""

    head_store: HeadStore | None = None
    """Where Ray heads that serve keep what they know; None for their memory alone."""

    network_peers: NetworkPeers | None = None
    """Who may reach the pods of children; None for everybody."""

    toolchain: Mapping[str, str] = field(default_factory=lambda: installed_toolchain())
    """Versions of what builds engines; part of an engine's key, so that another toolchain builds anew."""

    @property
    def toolchain_digest(self) -> str:
        """Return eight hexadecimal digits that change when engines would be built by other versions."""
        return hashlib.sha256(canonical(dict(self.toolchain))).hexdigest()[:8]

    def child_environment(self) -> dict[str, str]:
        """Return the environment that the control plane puts into every child (architecture part 2)."""
        given = {
            "BELVEDERE_ARTIFACTS": self.artifacts_url,
            "BELVEDERE_STORE": self.store_url,
            "BELVEDERE_HOME": self.home,
            "BELVEDERE_INSTANCE": self.instance,
        }
        return {**{name: value for name, value in given.items() if value}, **self.environment}

    @property
    def pods(self) -> PodSettings:
        """Return how the pods of children are set up."""
        return PodSettings(
            image=self.image,
            environment=self.child_environment(),
            defaults=self.pod_defaults,
            head_store=self.head_store,
        )


@dataclass(frozen=True, kw_only=True)
class Context:
    """Handed to `controllers()`."""

    store: ObjectStore
    caches: Caches
    clock: Clock
    settings: Settings

    @cached_property
    def artifacts(self) -> ArtifactStore:
        """Return the artifact store of the installation."""
        return ArtifactStore(self.settings.artifacts_url)

    @cached_property
    def http(self) -> httpx.AsyncClient:
        """Return the client for Prometheus and the Ray dashboards; whoever runs the control plane closes it."""
        timeout = httpx.Timeout(5.0, connect=2.0)
        return httpx.AsyncClient(timeout=timeout, transport=AiohttpTransport(), trust_env=False)


TOOLCHAIN_VARIABLE = "BELVEDERE_TOOLCHAIN"
"""Names a JSON file with version by package; the operator's own image has no torch."""
_TOOLCHAIN_PACKAGES = ("ai-edge-litert", "onnx", "onnxruntime", "onnxscript", "openvino", "tensorrt", "torch")


def installed_toolchain(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the versions of what builds engines: what a file says where they are built in another image, else what is installed here."""
    told = environment.get(TOOLCHAIN_VARIABLE)
    if told:
        return {str(name): str(given) for name, given in json.loads(Path(told).read_text()).items()}
    found: dict[str, str] = {}
    for name in _TOOLCHAIN_PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
