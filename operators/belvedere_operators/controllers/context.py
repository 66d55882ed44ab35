"""What every controller is given: the store, its caches, the clock, the artifacts, and the settings of this installation."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version

import httpx

from belvedere_operators.runtime import Caches, Clock
from belvedere_platform.artifacts import ArtifactStore
from belvedere_platform.artifacts.layout import canonical
from belvedere_platform.store import ObjectStore

_TOOLCHAIN_PACKAGES = ("onnx", "onnxruntime", "onnxscript", "torch")


@dataclass(frozen=True, kw_only=True)
class Images:
    """Container images of the children; processes on one machine ignore them."""

    trainer: str = "belvedere/trainer"
    engine: str = "belvedere/engine"
    server: str = "belvedere/server"
    gateway: str = "belvedere/gateway"


@dataclass(frozen=True, kw_only=True)
class ControllerSettings:
    """What the installation decides. `environment` goes into every child, with BELVEDERE_INSTANCE."""

    instance: str
    artifacts_url: str
    store_url: str
    home: str | None = None
    prometheus_url: str | None = None
    images: Images = Images()
    ray_version: str = "2.60.0"
    toolchain: Mapping[str, str] = field(default_factory=lambda: installed_toolchain())

    @property
    def environment(self) -> dict[str, str]:
        """Return the environment that every child gets."""
        given = {
            "BELVEDERE_ARTIFACTS": self.artifacts_url,
            "BELVEDERE_STORE": self.store_url,
            "BELVEDERE_INSTANCE": self.instance,
        }
        return given if self.home is None else given | {"BELVEDERE_HOME": self.home}

    @property
    def toolchain_digest(self) -> str:
        """Return eight hexadecimal digits that change when engines would be built by other versions."""
        return hashlib.sha256(canonical(dict(self.toolchain))).hexdigest()[:8]


@dataclass(frozen=True, kw_only=True)
class ControllerContext:
    """One per control plane."""

    store: ObjectStore
    caches: Caches
    clock: Clock
    artifacts: ArtifactStore
    http: httpx.AsyncClient
    settings: ControllerSettings
    log: logging.Logger = logging.getLogger("belvedere.controllers")


def installed_toolchain() -> dict[str, str]:
    """Return the versions of what builds engines, as far as it is installed beside the control plane."""
    found: dict[str, str] = {}
    for name in _TOOLCHAIN_PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
