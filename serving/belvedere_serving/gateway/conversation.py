"""One Envoy's discovery stream as a state machine without input or output: what it was told, what it took, what it hears next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from belvedere_serving.gateway.messages import discovery_pb2
from belvedere_serving.gateway.snapshot import (
    CLUSTERS,
    ENDPOINTS,
    LISTENERS,
    TYPE_OF_ROUTES,
    Resources,
    Snapshot,
    stages,
    version_of,
)

ORDER = (CLUSTERS, ENDPOINTS, LISTENERS, TYPE_OF_ROUTES)
"""What is referred to comes before what refers to it."""
_WILDCARD = (CLUSTERS, LISTENERS)


@dataclass(kw_only=True)
class Subscription:
    """What Envoy asked for of one type, and the last answer to it."""

    names: frozenset[str] = frozenset()
    accepted: str = ""
    sent: str = ""
    nonce: str = ""
    waiting: bool = False
    refused: str = ""
    """The version that Envoy did not take."""


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Envoy did not take a version and goes on with what it had."""

    type_url: str
    version: str
    reason: str


class Conversation:
    """Answers the requests of one stream, state of the world, in an order that never breaks a route."""

    def __init__(self, listeners: Resources) -> None:
        self._listeners = listeners
        self._subscriptions: dict[str, Subscription] = {}
        self._applied = Snapshot()
        self._stages: tuple[Snapshot, ...] = ()
        self._num_sent = 0
        self._endpoints_stale = False
        self._returning = False

    @property
    def unfinished(self) -> bool:
        """Whether Envoy has not come to the target yet."""
        return bool(self._stages)

    def retarget(self, target: Snapshot) -> None:
        """Set what Envoy should come to; starts from what it has taken so far."""
        self._stages = stages(self._applied, target)

    def receive(self, request: Any) -> Refusal | None:
        """Take in a request: a subscription, an acceptance or a refusal, which is returned."""
        subscription = self._subscriptions.setdefault(request.type_url, Subscription())
        if request.type_url == CLUSTERS and not subscription.nonce and request.version_info:
            self._returning = True
        if request.response_nonce != subscription.nonce:
            return None  # about an answer that a later one has replaced
        subscription.names = frozenset(request.resource_names)
        subscription.waiting = False
        if request.HasField("error_detail"):
            subscription.refused = subscription.sent
            return Refusal(
                type_url=request.type_url, version=subscription.sent, reason=str(request.error_detail.message)
            )
        subscription.accepted = request.version_info
        self._note_acceptance(request.type_url)
        return None

    def next_answer(self, *, patient: bool = True) -> Any | None:
        """Return the next thing to tell Envoy, or None while it must first ask or accept.

        After a change of clusters Envoy asks for the replicas of the new ones; an impatient caller no longer waits for that.
        """
        if self._returning and self._stages:
            answer = self._routes_first()
            if answer is not None or (self._returning and patient):
                return answer
            self._returning = False
        while self._stages:
            stage = self._stages[0]
            blocked = False
            for type_url in ORDER:
                subscription = self._subscriptions.get(type_url)
                if subscription is None:
                    blocked = blocked or (patient and self._will_ask(stage, type_url))
                    continue
                # Envoy accepts changed clusters only when it has their replicas, so replicas do not wait for clusters.
                if blocked and type_url != ENDPOINTS:
                    return None
                if subscription.waiting:
                    blocked = True
                    continue
                if patient and type_url == ENDPOINTS and not self._asked_for_all(stage, subscription):
                    return None
                resources = self._wanted(stage, type_url, subscription)
                version = version_of(resources)
                if version == subscription.refused:
                    self._stages = ()
                    return None
                if version != subscription.accepted or (type_url == ENDPOINTS and self._endpoints_stale):
                    return self._answer(type_url, subscription, resources, version)
            if blocked:
                return None
            self._applied = stage
            self._stages = self._stages[1:]
        return self._late_subscription()

    def _routes_first(self) -> Any | None:
        """Answer an Envoy that comes with an older configuration, which we do not know, from a stream before this one.

        Its routes may lead to clusters that are about to go. When it has every cluster that the new routes lead to, which its
        request for replicas shows, these routes can come before everything else.
        """
        routes, replicas = self._subscriptions.get(TYPE_OF_ROUTES), self._subscriptions.get(ENDPOINTS)
        if routes is None or replicas is None or routes.waiting:
            return None
        target = self._stages[-1]
        wanted = self._wanted(target, TYPE_OF_ROUTES, routes)
        version = version_of(wanted)
        if version not in (routes.accepted, routes.refused) and self._asked_for_all(target, replicas):
            return self._answer(TYPE_OF_ROUTES, routes, wanted, version)
        self._returning = False
        return None

    def _late_subscription(self) -> Any | None:
        """Answer a request for names that were not asked for before, when nothing else is under way."""
        for type_url in ORDER:
            subscription = self._subscriptions.get(type_url)
            if subscription is None or subscription.waiting:
                continue
            resources = self._wanted(self._applied, type_url, subscription)
            version = version_of(resources)
            if resources and version not in (subscription.accepted, subscription.refused):
                return self._answer(type_url, subscription, resources, version)
        return None

    def _will_ask(self, stage: Snapshot, type_url: str) -> bool:
        return type_url == CLUSTERS or (type_url == ENDPOINTS and bool(stage.endpoints))

    def _asked_for_all(self, stage: Snapshot, subscription: Subscription) -> bool:
        return frozenset(stage.endpoints) & frozenset(stage.clusters) <= subscription.names

    def _wanted(self, stage: Snapshot, type_url: str, subscription: Subscription) -> Resources:
        if type_url == LISTENERS:
            return self._listeners
        resources = stage.of_type(type_url)
        if type_url in _WILDCARD:
            return resources
        return {name: resources[name] for name in sorted(subscription.names) if name in resources}

    def _answer(self, type_url: str, subscription: Subscription, resources: Resources, version: str) -> Any:
        self._num_sent += 1
        subscription.sent, subscription.nonce, subscription.waiting = version, str(self._num_sent), True
        subscription.refused = ""
        # A changed cluster waits for its replicas anew, even when they are the same as before.
        self._endpoints_stale = type_url == CLUSTERS or (self._endpoints_stale and type_url != ENDPOINTS)
        return discovery_pb2.DiscoveryResponse(
            version_info=version,
            type_url=type_url,
            nonce=subscription.nonce,
            resources=[resources[name] for name in sorted(resources)],
        )

    def _note_acceptance(self, type_url: str) -> None:
        if not self._stages:
            return
        stage = self._stages[0]
        taken: Mapping[str, Any] = {
            CLUSTERS: {"clusters": stage.clusters},
            ENDPOINTS: {"endpoints": stage.endpoints},
            TYPE_OF_ROUTES: {"routes": stage.routes},
        }.get(type_url, {})
        self._applied = replace(self._applied, **taken)
