"""One Envoy's discovery stream as a state machine without input or output: what it has, what it was told, what it hears next.

Nothing is planned ahead: each answer follows from what Envoy has by its own word and from the target of this moment, so the
target may change, and the stream be lost, between any two messages.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from belvedere_serving.gateway.clusters import no_replicas
from belvedere_serving.gateway.history import History
from belvedere_serving.gateway.messages import discovery_pb2, pack
from belvedere_serving.gateway.snapshot import (
    CLUSTERS,
    ENDPOINTS,
    LISTENERS,
    TYPE_OF_ROUTES,
    Resources,
    Snapshot,
    fed_by_discovery,
    joined,
    version_of,
    with_replicas,
)


@dataclass(kw_only=True)
class Subscription:
    """What Envoy asked for of one type, what it has, and the last answer to it."""

    names: frozenset[str] = frozenset()
    accepted: str = ""
    """The version that Envoy says it has."""
    has: Resources | None = field(default_factory=dict)
    """The resources of that version; None while it is not known what they are."""
    sent: str = ""
    sent_resources: Resources | None = None
    nonce: str = ""
    waiting: bool = False
    refused: str = ""
    """The version that Envoy did not take."""

    @property
    def coming(self) -> Resources | None:
        """What Envoy has when it has taken the answer under way."""
        return self.sent_resources if self.waiting else self.has

    def rests_on(self, version: str) -> bool:
        """Return whether Envoy has this version, and is about to take no other."""
        return not self.waiting and self.accepted == version


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Envoy did not take a version and goes on with what it had."""

    type_url: str
    version: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class _Aim:
    """What Envoy should have next, given the routes that it has now."""

    clusters: Resources | None
    """None while the clusters stay as they are."""
    endpoints: Resources
    complete: bool
    """Whether every cluster that Envoy asked about is answered, at the least with what it has."""


class Conversation:
    """Answers the requests of one stream, state of the world, in an order that never breaks a route."""

    def __init__(self, listeners: Resources, history: History) -> None:
        self._listeners = listeners
        self._history = history
        self._subscriptions: dict[str, Subscription] = {}
        self._target: Snapshot | None = None
        self._num_sent = 0
        self._endpoints_stale = False
        self._without_routes = False
        self.unfinished = False
        """Whether Envoy had not come to the target when last asked for an answer."""

    def retarget(self, target: Snapshot) -> None:
        """Set what Envoy should come to."""
        self._target = target

    def receive(self, request: Any) -> Refusal | None:
        """Take in a request: a subscription, an acceptance or a refusal, which is returned."""
        subscription = self._subscriptions.get(request.type_url) or self._begin(request)
        if request.response_nonce != subscription.nonce:
            return None  # about an answer that a later one has replaced
        subscription.names = frozenset(request.resource_names)
        subscription.waiting = False
        if request.HasField("error_detail"):
            # Of clusters Envoy may have taken those that it found no fault with: only a new answer makes sure.
            self._history.doubt(request.type_url, request.version_info)
            subscription.refused, subscription.accepted = subscription.sent, ""
            return Refusal(
                type_url=request.type_url, version=subscription.sent, reason=str(request.error_detail.message)
            )
        subscription.accepted = request.version_info
        if not subscription.nonce and self._history.doubts(request.type_url, request.version_info):
            subscription.accepted = ""
        if subscription.nonce and subscription.accepted == subscription.sent:
            subscription.has = subscription.sent_resources
        return None

    def _begin(self, request: Any) -> Subscription:
        # While clusters warm, Envoy does not speak of clusters. One that begins with the replicas has lost its stream then,
        # and waits for an answer with them even if it is the one that it has.
        if request.type_url == ENDPOINTS and CLUSTERS not in self._subscriptions:
            self._endpoints_stale = True
        subscription = Subscription(has=self._history.find(request.type_url, request.version_info))
        self._subscriptions[request.type_url] = subscription
        return subscription

    def next_answer(self, *, patient: bool = True) -> Any | None:
        """Return the next thing to tell Envoy, or None while it must first ask or accept.

        An impatient caller no longer waits for questions that an Envoy unknown to us may have, or may not.
        """
        if self._target is None:
            return None
        self._recognise(self._target)
        settled = self._routes_are(self._target, patient=patient)
        self.unfinished = True
        aim = self._aim(self._target, settled=settled, patient=patient)
        if aim is None:
            return None
        answer, blocked = self._tell_clusters(aim)
        if answer is None:
            answer, endpoints_blocked = self._tell_endpoints(aim)
            blocked = blocked or endpoints_blocked
        if answer is None and not blocked:
            answer = self._tell(LISTENERS, self._listeners) or self._tell(TYPE_OF_ROUTES, self._target.routes)
            self.unfinished = answer is not None or not settled
        return answer

    def _recognise(self, target: Snapshot) -> None:
        """Know an Envoy by the target's own versions, as after a start of ours, when nothing was sent yet."""
        for type_url, resources in ((CLUSTERS, target.clusters), (ENDPOINTS, target.endpoints)):
            subscription = self._subscriptions.get(type_url)
            if subscription is not None and subscription.has is None:
                asked = resources if type_url == CLUSTERS else _only(resources, subscription.names)
                if version_of(asked) == subscription.accepted:
                    subscription.has = asked
                    self._history.note(type_url, subscription.accepted, asked)

    def _routes_are(self, target: Snapshot, *, patient: bool) -> bool:
        routes = self._subscriptions.get(TYPE_OF_ROUTES)
        if routes is None:
            self._without_routes = self._without_routes or not patient
            return self._without_routes
        return routes.rests_on(version_of(target.routes))

    def _aim(self, target: Snapshot, *, settled: bool, patient: bool) -> _Aim | None:
        """Return what Envoy should have of clusters and replicas, or None while it must first say what it has."""
        clusters, endpoints = self._subscriptions.get(CLUSTERS), self._subscriptions.get(ENDPOINTS)
        has_clusters = {} if clusters is None else clusters.coming
        has_endpoints = {} if endpoints is None else endpoints.coming
        if settled:
            return _Aim(clusters=target.clusters, endpoints=target.endpoints, complete=True)
        if endpoints is None and fed_by_discovery(has_clusters or {}):
            return None  # it has replicas too, and is about to say which
        if has_clusters is not None and has_endpoints is not None:
            aim = joined(has_clusters, has_endpoints, target)
            return _Aim(clusters=aim.clusters, endpoints=aim.endpoints, complete=True)
        # An Envoy with a configuration of which we know nothing, older than this process. Its routes may lead to clusters that
        # the target lacks. If it has every cluster of the target, as its question for replicas shows, the routes can come first.
        if patient and (endpoints is None or TYPE_OF_ROUTES not in self._subscriptions):
            return None
        if endpoints is not None and fed_by_discovery(target.clusters) <= endpoints.names:
            return _Aim(clusters=None, endpoints=with_replicas(target.endpoints), complete=False)
        return _Aim(clusters=target.clusters, endpoints=target.endpoints, complete=False)

    def _tell_clusters(self, aim: _Aim) -> tuple[Any | None, bool]:
        """Return the answer, if one is due, and whether the routes must wait for the clusters."""
        subscription = self._subscriptions.get(CLUSTERS)
        if aim.clusters is None:
            return None, False
        answer = self._tell(CLUSTERS, aim.clusters)
        return answer, subscription is None or not subscription.rests_on(version_of(aim.clusters))

    def _tell_endpoints(self, aim: _Aim) -> tuple[Any | None, bool]:
        """Return the answer, if one is due, and whether the routes must wait for the replicas.

        Envoy accepts changed clusters only when it has their replicas, so these do not wait for the clusters' acceptance, but
        for Envoy's question about all of them.
        """
        subscription, clusters = self._subscriptions.get(ENDPOINTS), self._subscriptions.get(CLUSTERS)
        coming = clusters.coming if clusters is not None and clusters.coming is not None else {}
        if subscription is None:
            return None, bool(fed_by_discovery(coming))
        if not fed_by_discovery(coming) <= subscription.names:
            return None, True
        resources: Resources = _only(aim.endpoints, subscription.names)
        if aim.complete:
            resources = self._completed(resources, subscription)
        known = subscription.names <= set(resources)
        answer = self._tell(ENDPOINTS, resources, again=self._endpoints_stale, known=known)
        return answer, not subscription.rests_on(version_of(resources))

    def _completed(self, resources: Resources, subscription: Subscription) -> Resources:
        """Leave nothing out: a cluster that warms, though the target no longer has it, would hold up all others."""
        has = subscription.coming or {}
        left_out = sorted(subscription.names - set(resources))
        return {**resources, **{name: has[name] if name in has else pack(no_replicas(name)) for name in left_out}}

    def _tell(self, type_url: str, resources: Resources, *, again: bool = False, known: bool = True) -> Any | None:
        """Return an answer with the resources, unless Envoy has them, refused them or has not yet taken the answer before."""
        subscription = self._subscriptions.get(type_url)
        if subscription is None or subscription.waiting:
            return None
        version = version_of(resources)
        if version == subscription.refused or (version == subscription.accepted and not again):
            return None
        if type_url == CLUSTERS:
            self._endpoints_stale = self._endpoints_stale or _warms(subscription, resources)
        elif type_url == ENDPOINTS:
            self._endpoints_stale = False
        return self._answer(type_url, subscription, resources, version, known=known)

    def _answer(
        self, type_url: str, subscription: Subscription, resources: Resources, version: str, *, known: bool
    ) -> Any:
        self._num_sent += 1
        subscription.sent, subscription.sent_resources = version, resources if known else None
        subscription.nonce, subscription.waiting, subscription.refused = str(self._num_sent), True, ""
        if known:
            self._history.note(type_url, version, resources)
        return discovery_pb2.DiscoveryResponse(
            version_info=version,
            type_url=type_url,
            nonce=subscription.nonce,
            resources=[resources[name] for name in sorted(resources)],
        )


def _warms(subscription: Subscription, clusters: Resources) -> bool:
    """Return whether a cluster may be new to Envoy or changed: it waits for its replicas, even for the same as before."""
    has = subscription.has if subscription.accepted else None
    return has is None or any(has.get(name) != clusters[name] for name in fed_by_discovery(clusters))


def _only(resources: Resources, names: frozenset[str]) -> Resources:
    return {name: resources[name] for name in sorted(names) if name in resources}
