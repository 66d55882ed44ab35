"""The ModelService controller: gather, decide, write, show."""

from __future__ import annotations

from collections.abc import Sequence

from belvedere_operators.controllers.context import Context
from belvedere_operators.controllers.modelservice.apply import FIELD_MANAGER, apply_children, apply_journal, tell
from belvedere_operators.controllers.modelservice.children import children
from belvedere_operators.controllers.modelservice.decide import decide
from belvedere_operators.controllers.modelservice.gather import gather
from belvedere_operators.controllers.modelservice.journal import Journal
from belvedere_operators.controllers.modelservice.memory import Memory, look_seconds
from belvedere_operators.controllers.modelservice.metrics import Prometheus
from belvedere_operators.controllers.modelservice.state import State
from belvedere_operators.controllers.modelservice.status import status_of
from belvedere_operators.controllers.status import write_status
from belvedere_operators.manifests.ownership import MANAGED_BY, SERVICE_LABEL
from belvedere_operators.runtime import After, Controller, EventRecorder, Key, Terminal, Watched, label_keys
from belvedere_platform.errors import CorruptData
from belvedere_platform.resources.model_service_status import ModelServiceStatus
from belvedere_platform.store import Manifest
from belvedere_platform.store.kinds import (
    CONFIG_MAP,
    DEPLOYMENT,
    ENDPOINT_SLICE,
    ENGINE,
    HORIZONTAL_POD_AUTOSCALER,
    MODEL_SERVICE,
    MODEL_VERSION,
    NETWORK_POLICY,
    POD_DISRUPTION_BUDGET,
    PROMETHEUS_RULE,
    RAY_SERVICE,
    SCALED_OBJECT,
)

SHORTEST_WAIT_SECONDS = 0.05
VERSION_INDEX = "spec.version"


class ModelServiceReconciler:
    """Holds what a reconcile needs. What it must remember is in the store."""

    def __init__(self, context: Context, prometheus: Prometheus) -> None:
        self._context = context
        self._prometheus = prometheus
        self._memory = Memory()
        self._events = EventRecorder(context.store, clock=context.clock, component=FIELD_MANAGER)

    async def reconcile(self, key: Key) -> After | None:
        """Bring one service one step nearer to what is asked."""
        try:
            state = await gather(self._context, self._prometheus, self._memory, key)
        except CorruptData as error:
            # Acting without memory could put an unproven version first; a person must decide.
            raise Terminal(str(error)) from error
        if state is None:
            self._memory.forget(key)
            return None
        store, settings = self._context.store, self._context.settings
        journal = decide(state)
        self._memory.keep(key, journal)
        await apply_journal(store, state, journal)
        await apply_children(store, state, children(state, journal, settings))
        status = status_of(state, journal, settings)
        await tell(self._events, state, journal, status)
        await write_status(store, state.manifest, _stored_status(state.manifest), status, field_manager=FIELD_MANAGER)
        return After(seconds=wait_seconds(state, journal))


def _stored_status(manifest: Manifest) -> ModelServiceStatus | None:
    """Return the status in the store; None when there is none, or when an older version wrote it in another form."""
    try:
        return ModelServiceStatus.model_validate(manifest["status"])
    except (KeyError, ValueError):
        return None


def wait_seconds(state: State, journal: Journal) -> float:
    """Return how long nothing happens by itself: until the next look, the end of a hold, or the end of a retirement."""
    # A rollout that has just begun is looked at as often as it asks.
    interval = look_seconds(
        state.spec.rollout.interval_seconds, journal, num_services=state.num_services, num_waiting=state.num_waiting
    )
    moments = [(journal.looked.time if journal.looked else state.now) + interval]
    moments += [one.until for one in journal.retiring]
    active = journal.active
    if active is not None and active.step is not None and active.step_started is not None:
        steps = state.spec.rollout.steps
        moments.append(active.step_started + steps[min(active.step, len(steps) - 1)].hold_seconds)
    ahead = [moment - state.now for moment in moments if moment > state.now]
    return max(SHORTEST_WAIT_SECONDS, min(ahead, default=interval))


def model_service_controller(context: Context) -> Controller:
    """Return the controller of ModelServices."""
    prometheus = Prometheus(context.http, context.settings.prometheus_url)
    reconciler = ModelServiceReconciler(context, prometheus)
    by_service = label_keys(SERVICE_LABEL)
    services = context.caches.of(MODEL_SERVICE)
    services.index(VERSION_INDEX, lambda service: (service["spec"].get("version"),))

    def naming_version(manifest: Manifest) -> Sequence[Key]:
        """Map a ModelVersion or an Engine to the services that ask for its version."""
        spec = manifest.get("spec", {})
        version = spec.get("modelVersion", manifest["metadata"]["name"])
        namespace = manifest["metadata"]["namespace"]
        return services.naming(VERSION_INDEX, namespace, version)

    return Controller(
        name="modelservice",
        kind=MODEL_SERVICE,
        reconcile=reconciler.reconcile,
        caches=context.caches,
        clock=context.clock,
        watched=(
            Watched(kind=ENGINE, keys=naming_version),
            Watched(kind=MODEL_VERSION, keys=naming_version),
            Watched(kind=RAY_SERVICE, keys=by_service, labels=MANAGED_BY),
            Watched(kind=DEPLOYMENT, keys=by_service, labels=MANAGED_BY),
            Watched(kind=ENDPOINT_SLICE, keys=by_service, labels=MANAGED_BY),
            Watched(kind=CONFIG_MAP, keys=alerted_service, labels=MANAGED_BY),
            Watched(kind=PROMETHEUS_RULE, keys=by_service, labels=MANAGED_BY, optional=True),
            Watched(kind=POD_DISRUPTION_BUDGET, keys=by_service, labels=MANAGED_BY),
            Watched(kind=NETWORK_POLICY, keys=by_service, labels=MANAGED_BY),
            Watched(kind=HORIZONTAL_POD_AUTOSCALER, keys=by_service, labels=MANAGED_BY, optional=True),
            Watched(kind=SCALED_OBJECT, keys=by_service, labels=MANAGED_BY, optional=True),
        ),
        workers=context.settings.workers,
    )


def alerted_service(manifest: Manifest) -> list[Key]:
    """Map the alerts of a service to it. Its own route and journal would only wake it for what it just wrote."""
    name = manifest["metadata"].get("labels", {}).get(SERVICE_LABEL)
    if name is None or "alerts.json" not in (manifest.get("data") or {}):
        return []
    return [Key(manifest["metadata"]["namespace"], name)]
