"""Read everything that a reconcile of a ModelService needs: straight from the store, so that our own last write is seen."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Literal, get_args

from belvedere_operators.alerts.book import alerts_name, read_book
from belvedere_operators.controllers.context import Context
from belvedere_operators.controllers.modelservice.journal import Journal, journal_name, read_journal
from belvedere_operators.controllers.modelservice.looking import shown_look
from belvedere_operators.controllers.modelservice.memory import Memory, look_seconds
from belvedere_operators.controllers.modelservice.metrics import Metrics, Prometheus, look
from belvedere_operators.controllers.modelservice.state import State, generation_of, wants_rollout
from belvedere_operators.delivery.rollout import Request, Verb
from belvedere_operators.manifests.autoscaler import KINDS as AUTOSCALERS
from belvedere_operators.manifests.ownership import MANAGED_BY, SERVICE_LABEL, VERSION_LABEL
from belvedere_operators.manifests.server import CPUS_ANNOTATION
from belvedere_operators.runtime import Key
from belvedere_platform.errors import NotFound, Unavailable
from belvedere_platform.resources import Engine, ModelService, ModelVersion
from belvedere_platform.resources.model_service import ModelServiceSpec
from belvedere_platform.store import Kind, Manifest, ObjectStore
from belvedere_platform.store.kinds import (
    CONFIG_MAP,
    DEPLOYMENT,
    ENDPOINT_SLICE,
    ENGINE,
    MODEL_SERVICE,
    MODEL_VERSION,
    NETWORK_POLICY,
    POD_DISRUPTION_BUDGET,
    RAY_SERVICE,
)

REQUEST_ANNOTATION = "belvedere.dev/rollout-request"
SERVER_KINDS = {"rayServe": RAY_SERVICE, "triton": DEPLOYMENT}
"""By backend, what serves a version."""
GUARD_KINDS = (POD_DISRUPTION_BUDGET, NETWORK_POLICY, *AUTOSCALERS.values())
"""Of what a service has one at most, and is told to have or not."""
EARLY = 0.05
"""A look may come this share of the interval early: timers are not exact."""


def engine_name(version: str, spec: ModelServiceSpec) -> str:
    """Return the name of the Engine of a version for the target of a service."""
    return f"{version}-{spec.engine.target.runtime}-{spec.engine.target.precision}"


async def gather(context: Context, prometheus: Prometheus, memory: Memory, key: Key) -> State | None:
    """Return the state, or None when the service is gone."""
    store, now = context.store, context.clock().timestamp()
    manifest = await get(store, MODEL_SERVICE, key.name, key.namespace)
    if manifest is None or "deletionTimestamp" in manifest["metadata"]:
        return None
    service = ModelService.model_validate({**manifest, "status": None})
    stored = await get(store, CONFIG_MAP, journal_name(key.name), key.namespace)
    journal = memory.recall(key, read_journal(stored))
    num_services, num_waiting = len(context.caches.of(MODEL_SERVICE)), memory.num_waiting
    names = versions_of(service.spec, journal, manifest)
    versions = await _objects(store, MODEL_VERSION, {name: name for name in names}, key.namespace)
    engines = await _objects(store, ENGINE, {name: engine_name(name, service.spec) for name in names}, key.namespace)
    kind = SERVER_KINDS[service.spec.backend]
    servers, others = await _servers(store, key, kind, count_others=context.settings.cluster_cpus is not None)
    interval = look_seconds(
        service.spec.rollout.interval_seconds, journal, num_services=num_services, num_waiting=num_waiting
    )
    if journal.looked is None:
        # After a start all services are looked at in their turn, as if the process had never ended.
        last = now - (1 - key.turn) * interval
        journal = journal.with_(looked=shown_look(manifest, journal, time=last))
    # A rollout begins with a look of its own: the one before is in no journal, so a process that is killed here would lose it.
    begins = journal.active is None and wants_rollout(service.spec, generation_of(manifest), journal)
    due = journal.stable is not None and (begins or look_is_due(journal, interval, now))
    metrics, problem = await _metrics(prometheus, service.spec, key, now) if due else (None, None)
    return State(
        now=now,
        manifest=manifest,
        service=service,
        journal=journal,
        journal_version=stored["metadata"]["resourceVersion"] if stored else None,
        versions={name: ModelVersion.model_validate(found) for name, found in versions.items()},
        version_manifests=versions,
        engines={name: Engine.model_validate(found) for name, found in engines.items()},
        servers=servers,
        guards=await _guards(store, key),
        missing_kind=_missing_kind(context, service.spec),
        num_services=num_services,
        num_waiting=num_waiting,
        routable=await _routable(store, key),
        cluster_cpus=context.settings.cluster_cpus,
        cpus_of_others=others,
        book=read_book(await get(store, CONFIG_MAP, alerts_name(key.name), key.namespace)),
        request=read_request(manifest),
        metrics=metrics,
        metrics_problem=problem,
    )


async def get(store: ObjectStore, kind: Kind, name: str, namespace: str) -> Manifest | None:
    """Return an object or None."""
    try:
        return await store.get(kind, name, namespace)
    except NotFound:
        return None


def versions_of(spec: ModelServiceSpec, journal: Journal, manifest: Manifest) -> tuple[str, ...]:
    """Return the versions that matter: asked for, stable, candidate, retiring."""
    names = [spec.version]
    shown = ((manifest.get("status") or {}).get("stable") or {}).get("version")
    if shown is not None:
        names.append(shown)
    if journal.stable is not None:
        names.append(journal.stable)
    if journal.rollout is not None:
        names.append(journal.rollout.candidate)
    return tuple(dict.fromkeys((*names, *(one.version for one in journal.retiring))))


def read_request(manifest: Manifest) -> Request | None:
    """Return what a person asked for in the annotation; None when there is nothing that can be understood."""
    text = manifest["metadata"].get("annotations", {}).get(REQUEST_ANNOTATION)
    if not text:
        return None
    try:
        given = json.loads(text)
        verb = _verb(given["verb"])
        return Request(verb=verb, identity=str(given["id"]), candidate=given.get("candidate")) if verb else None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _verb(given: object) -> Literal["promote", "abort", "resume"] | None:
    return next((verb for verb in get_args(Verb) if verb == given), None)


async def _objects(store: ObjectStore, kind: Kind, names: Mapping[str, str], namespace: str) -> dict[str, Manifest]:
    found = await asyncio.gather(*(get(store, kind, name, namespace) for name in names.values()))
    return {version: one for version, one in zip(names, found, strict=True) if one is not None}


async def _servers(
    store: ObjectStore, key: Key, kind: Kind, *, count_others: bool
) -> tuple[dict[str, Manifest], float]:
    """Return what serves this service's versions, and the CPUs that the others ask for, if that is to be known."""
    listing = await store.list(kind, key.namespace, labels={SERVICE_LABEL: key.name})
    own = {item["metadata"]["labels"][VERSION_LABEL]: item for item in listing.items}
    if not count_others:
        return own, 0.0
    mine = {item["metadata"]["uid"] for item in listing.items}
    every = [one for kind in SERVER_KINDS.values() for one in (await store.list(kind, labels=MANAGED_BY)).items]
    return own, sum(_cpus(item) for item in every if item["metadata"]["uid"] not in mine)


async def _guards(store: ObjectStore, key: Key) -> tuple[Manifest, ...]:
    found = [await store.list(kind, key.namespace, labels={SERVICE_LABEL: key.name}) for kind in GUARD_KINDS]
    return tuple(item for listing in found for item in listing.items)


def _missing_kind(context: Context, spec: ModelServiceSpec) -> Kind | None:
    asked = spec.scaling.autoscaler
    kind = AUTOSCALERS[asked.kind] if asked is not None else None
    return kind if kind is not None and context.caches.of(kind, MANAGED_BY, optional=True).absent else None


def _cpus(server: Manifest) -> float:
    return float(server["metadata"].get("annotations", {}).get(CPUS_ANNOTATION, 0))


async def _routable(store: ObjectStore, key: Key) -> dict[str, int]:
    listing = await store.list(ENDPOINT_SLICE, key.namespace, labels={SERVICE_LABEL: key.name})
    return count_ready(listing.items)


def count_ready(slices: Iterable[Manifest]) -> dict[str, int]:
    """Return by version how many endpoints are ready."""
    counts: dict[str, int] = defaultdict(int)
    for one in slices:
        version = one["metadata"].get("labels", {}).get(VERSION_LABEL)
        if version is not None and "deletionTimestamp" not in one["metadata"]:
            ready = [end for end in one.get("endpoints") or () if end.get("conditions", {}).get("ready")]
            counts[version] += len(ready)
    return dict(counts)


async def _metrics(
    prometheus: Prometheus, spec: ModelServiceSpec, key: Key, now: float
) -> tuple[Metrics | None, str | None]:
    try:
        return await look(prometheus, key.namespace, key.name, spec, at=now), None
    except Unavailable as error:
        return None, str(error)


def look_is_due(journal: Journal, interval_seconds: float, now: float) -> bool:
    """Return whether the interval since the last look is over."""
    if journal.looked is None:
        return True
    return now - journal.looked.time >= interval_seconds * (1 - EARLY)
