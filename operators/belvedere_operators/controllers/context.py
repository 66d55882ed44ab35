"""What every controller is given: the store, the caches, the clock, and how this installation is set up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from belvedere_platform.store import ObjectStore

from belvedere_operators.runtime import Caches, Clock


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How this installation is set up. The same names as the options of `belvedere operator`."""

    instance: str
    artifacts_url: str
    store_url: str
    home: str = ""
    namespace: str | None = None
    """The one namespace to act on; None for all."""
    prometheus_url: str = "http://127.0.0.1:9090"
    alerts_secret: str = ""
    """Bearer secret that Alertmanager sends to the webhook."""
    gateway_url: str | None = None
    """Where clients reach the gateway; shown in status."""
    image: str = "belvedere:dev"
    cluster_cpus: float | None = None
    """CPUs that replicas may use; None when the cluster does not say."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """More environment for every child."""

    def child_environment(self) -> dict[str, str]:
        """Return the environment that the control plane puts into every child (architecture part 2)."""
        given = {
            "BELVEDERE_ARTIFACTS": self.artifacts_url,
            "BELVEDERE_STORE": self.store_url,
            "BELVEDERE_HOME": self.home,
            "BELVEDERE_INSTANCE": self.instance,
        }
        return {**{name: value for name, value in given.items() if value}, **self.environment}


@dataclass(frozen=True, kw_only=True)
class Context:
    """Handed to `controllers()`."""

    store: ObjectStore
    caches: Caches
    clock: Clock
    settings: Settings
