"""Any order of changes, slow answers and lost streams: no route leads to nothing, and in the end Envoy has the newest configuration.

The Envoy here is a model of how the real one speaks over one aggregated stream, state of the world:
- it asks for the clusters first, for the listener when those are ready, and for replicas and routes as these demand;
- a new or changed cluster warms until an answer names its replicas, and the word about clusters waits as long;
- a cluster whose replicas nobody names is let go on without any after fifteen seconds, which must never be needed while the
  control plane lives;
- over a lost stream it keeps what it has, and comes back with one request for each type it ever asked for, in the order of its
  first questions, with the versions it has and no nonce; clusters are left out while one warms.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.route.v3 import route_pb2
from envoy.service.discovery.v3 import discovery_pb2
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from belvedere_platform.resources.gateway_route import GatewayRoute
from belvedere_serving.gateway.clusters import no_replicas
from belvedere_serving.gateway.conversation import Conversation
from belvedere_serving.gateway.history import History
from belvedere_serving.gateway.listener import gateway_listener
from belvedere_serving.gateway.messages import pack
from belvedere_serving.gateway.snapshot import (
    CLUSTERS,
    ENDPOINTS,
    LISTENERS,
    TYPE_OF_ROUTES,
    Snapshot,
    build_snapshot,
)
from belvedere_serving.gateway.world import Replica, World

LISTENER = {"gateway": pack(gateway_listener("127.0.0.1", 1))}
BAD = "bad"
"""A service whose clusters Envoy refuses."""

Service = tuple[str, tuple[tuple[str, int, int], ...], str]
"""Name; version, weight and number of replicas; path prefix, which is a setting of the cluster."""


@cache
def snapshot_of(services: tuple[Service, ...]) -> Snapshot:
    routes, replicas = {}, {}
    for name, versions, prefix in services:
        document = {
            "namespace": "default",
            "service": name,
            "versions": [{"version": version, "weight": weight} for version, weight, _ in versions],
        }
        routes["default", name] = GatewayRoute.model_validate(document)
        for version, _, count in versions:
            replicas["default", name, version] = tuple(
                Replica(address=f"10.0.0.{number}", http_port=80, grpc_port=90, http_path_prefix=prefix)
                for number in range(1, count + 1)
            )
    return build_snapshot(World(routes=routes, replicas=replicas), tap_address="127.0.0.1", tap_port=1)


@cache
def referred_to(routes: bytes) -> frozenset[str]:
    """The clusters to which a packed route table sends requests."""
    table = route_pb2.RouteConfiguration.FromString(routes)
    return frozenset(
        cluster.name
        for host in table.virtual_hosts
        for route in host.routes
        for cluster in route.route.weighted_clusters.clusters
    )


@cache
def asks_for_replicas(cluster: bytes) -> bool:
    return bool(cluster_pb2.Cluster.FromString(cluster).type == cluster_pb2.Cluster.EDS)


def named(type_: Any, resources: Any) -> dict[str, bytes]:
    found = {}
    for packed in resources:
        message = type_.FromString(packed.value)
        found[message.cluster_name if type_ is endpoint_pb2.ClusterLoadAssignment else message.name] = packed.value
    return found


class ModelledEnvoy:
    """What Envoy has, and what it would say next."""

    def __init__(self) -> None:
        self.clusters: dict[str, bytes] = {}
        self.warming: dict[str, bytes] = {}
        self.endpoints: dict[str, bytes] = {}
        self.routes = b""
        self.listens = False
        self.questions: list[str] = [CLUSTERS]
        self.versions: dict[str, str] = {}
        self.nonces: dict[str, str] = {}
        self.clusters_pending = False
        self.has_parts = False
        """Whether it refused clusters, but took those among them that it found no fault with."""
        self.outbox: list[Any] = []
        self.connected = False

    @property
    def watched(self) -> list[str]:
        every = {**self.clusters, **self.warming}
        return sorted(name for name, cluster in every.items() if asks_for_replicas(cluster))

    def connect(self) -> None:
        self.connected, self.nonces, self.clusters_pending = True, {}, False
        for type_url in self.questions:
            self.say(type_url)

    def lose(self) -> None:
        self.connected, self.outbox = False, []

    def say(self, type_url: str, error: str = "") -> None:
        if type_url not in self.questions:
            self.questions.append(type_url)
        if type_url == CLUSTERS and self.warming and not error:
            self.clusters_pending = True
            return
        names = {ENDPOINTS: self.watched, TYPE_OF_ROUTES: ["gateway"]}.get(type_url, [])
        request = discovery_pb2.DiscoveryRequest(
            type_url=type_url,
            resource_names=names,
            version_info=self.versions.get(type_url, ""),
            response_nonce=self.nonces.get(type_url, ""),
        )
        if error:
            request.error_detail.message = error
        self.outbox.append(request)

    def take(self, answer: Any) -> None:
        self.nonces[answer.type_url] = answer.nonce
        {CLUSTERS: self._take_clusters, ENDPOINTS: self._take_endpoints}.get(answer.type_url, self._take_other)(answer)

    def _take_clusters(self, answer: Any) -> None:
        watched_before, warming_before = self.watched, dict(self.warming)
        given = named(cluster_pb2.Cluster, answer.resources)
        refused = [name for name in given if f"/{BAD}/" in name]
        for name, cluster in given.items():
            if name in refused or cluster in (self.warming.get(name), self.clusters.get(name)):
                continue
            (self.warming if asks_for_replicas(cluster) else self.clusters)[name] = cluster
        for name in {*self.clusters, *self.warming} - {*given}:
            for held in (self.clusters, self.warming, self.endpoints):
                held.pop(name, None)
        self.has_parts = bool(refused)
        if not refused:
            self.versions[CLUSTERS] = answer.version_info
        if self.watched != watched_before or self.warming != warming_before:
            self.say(ENDPOINTS)
        self.say(CLUSTERS, error=f"no: {refused}" if refused else "")
        self._ask_for_listener()

    def _take_endpoints(self, answer: Any) -> None:
        given = named(endpoint_pb2.ClusterLoadAssignment, answer.resources)
        if self.watched or not given:
            self.versions[ENDPOINTS] = answer.version_info
        for name in self.watched:
            if name in given:
                self.endpoints[name] = given[name]
                if name in self.warming:
                    self.clusters[name] = self.warming.pop(name)
        if self.clusters_pending and not self.warming:
            self.clusters_pending = False
            self.say(CLUSTERS)
        self.say(ENDPOINTS)
        self._ask_for_listener()

    def _take_other(self, answer: Any) -> None:
        self.versions[answer.type_url] = answer.version_info
        self.say(answer.type_url)
        if answer.type_url == TYPE_OF_ROUTES:
            (self.routes,) = named(route_pb2.RouteConfiguration, answer.resources).values()
        elif TYPE_OF_ROUTES not in self.questions:
            self.say(TYPE_OF_ROUTES)

    def wait_no_longer(self) -> None:
        """Let the clusters that warm for too long go on with the replicas that are known of them, or none."""
        self.clusters |= self.warming
        self.endpoints |= {name: no_replicas(name).SerializeToString() for name in self.warming}
        self.warming.clear()
        if self.clusters_pending:
            self.clusters_pending = False
            self.say(CLUSTERS)
        self._ask_for_listener()

    def _ask_for_listener(self) -> None:
        if not self.warming and LISTENERS not in self.questions:
            self.say(LISTENERS)

    def has(self, target: Snapshot) -> bool:
        def held(resources: Any) -> dict[str, bytes]:
            return {name: packed.value for name, packed in resources.items()}

        return (
            not self.warming
            and self.clusters == held(target.clusters)
            and self.endpoints == held(target.endpoints)
            and {"gateway": self.routes} == held(target.routes)
        )


ONE, TWO = ("a", (("v1", 100, 1),), "/one"), ("a", (("v2", 100, 2),), "/one")
BOTH: Service = ("a", (("v1", 50, 1), ("v2", 50, 2)), "/one")
# Few, so that changes are often undone, and each differs from another in one thing: a version, a weight, a replica, a setting.
STATES: tuple[tuple[Service, ...], ...] = (
    (),
    (ONE,),
    (TWO,),
    (BOTH,),
    (("a", (("v1", 100, 1), ("v2", 0, 2)), "/one"),),
    (("a", (("v1", 50, 1), ("v2", 50, 0)), "/one"),),
    (("a", (("v1", 100, 1),), "/two"),),
    (("a", (("v1", 100, 2),), "/one"),),
    (("a", (("v1", 100, 0),), "/one"),),
    (ONE, ("b", (("v1", 100, 1),), "/two")),
    (("b", (("v1", 100, 1),), "/two"),),
    (TWO, (BAD, (("v1", 100, 1),), "/one")),
)


class LostStreams(RuleBasedStateMachine):
    """One Envoy, its control plane, and a wire between them that carries what it likes when it likes."""

    def __init__(self) -> None:
        super().__init__()
        self.envoy = ModelledEnvoy()
        self.inbox: list[Any] = []
        self.target: Snapshot | None = None
        self.refusable = False
        self.history = History()
        self.strangers = False
        """Whether the control plane began anew and knows nothing of what Envoy has."""

    @initialize()
    def start(self) -> None:
        self.conversation = Conversation(LISTENER, self.history)
        self.envoy.connect()

    @rule(services=st.sampled_from(STATES))
    def change(self, services: tuple[Service, ...]) -> None:
        self.target = snapshot_of(services)
        self.refusable = any(name == BAD for name, _, _ in services)
        if self.envoy.connected:
            self.conversation.retarget(self.target)

    @precondition(lambda self: self.envoy.outbox)
    @rule(count=st.integers(1, 4))
    def hear(self, count: int) -> None:
        for request in self.envoy.outbox[:count]:
            self.conversation.receive(request)
        del self.envoy.outbox[:count]
        self.speak()

    @precondition(lambda self: self.envoy.connected)
    @rule()
    def speak(self) -> None:
        self._speak(patient=True)

    @precondition(lambda self: self.envoy.connected and not self.envoy.outbox)
    @rule()
    def lose_patience(self) -> None:
        """After a silence: what Envoy had to say has arrived, what it was told it may not have taken yet."""
        self._speak(patient=False)

    def _speak(self, *, patient: bool) -> None:
        for _ in range(20):
            answer = self.conversation.next_answer(patient=patient)
            if answer is None:
                return
            self.inbox.append(answer)
        raise AssertionError("the control plane speaks without end")

    @precondition(lambda self: self.inbox)
    @rule()
    def take(self) -> None:
        self.envoy.take(self.inbox.pop(0))

    @precondition(lambda self: self.envoy.connected)
    @rule(count=st.integers(1, 10))
    def go_on(self, count: int) -> None:
        """Talk a while, a word at a time, each answered before the next."""
        for _ in range(count):
            if self.envoy.outbox:
                self.hear(1)
            elif self.inbox:
                self.take()
            self.routes_lead_to_replicas()

    @precondition(lambda self: self.envoy.connected)
    @rule()
    def lose_stream(self) -> None:
        self.envoy.lose()
        self.inbox.clear()

    @precondition(lambda self: not self.envoy.connected)
    @rule()
    def come_back(self) -> None:
        self.conversation = Conversation(LISTENER, self.history)
        if self.target is not None:
            self.conversation.retarget(self.target)
        self.envoy.connect()

    @precondition(lambda self: not self.envoy.has_parts)
    @rule()
    def restart(self) -> None:
        """Kill the control plane: the next one knows nothing of what was sent, nor whether what Envoy says is all it has."""
        if self.envoy.connected:
            self.lose_stream()
        self.history, self.strangers = History(), True

    @precondition(lambda self: self.target is not None and not self.envoy.has_parts and self.envoy.has(self.target))
    @rule()
    def restart_with_memory(self) -> None:
        """Kill the control plane: the next one knows what Envoy has, as this one wrote it down."""
        assert self.target is not None
        if self.envoy.connected:
            self.lose_stream()
        self.history = History()
        self.history.recall(self.target)

    @rule()
    def settle(self) -> None:
        if not self.envoy.connected:
            self.come_back()
        if self.target is None:
            return
        for _ in range(60):
            while self.envoy.outbox or self.inbox:
                if self.envoy.outbox:
                    self.hear(len(self.envoy.outbox))
                while self.inbox:
                    self.take()
                    self.routes_lead_to_replicas()
            self.speak()
            if not self.inbox and self.conversation.unfinished:
                self.lose_patience()
            if not self.inbox and self.envoy.warming and self.strangers:
                self.envoy.wait_no_longer()
            if not self.inbox and not self.envoy.outbox:
                break
        assert not self.inbox
        assert self.refusable or self.envoy.has(self.target)
        self.strangers = self.strangers and self.refusable

    @invariant()
    def routes_lead_to_replicas(self) -> None:
        if self.strangers:
            return  # what can be kept then is held by tests of its own
        for name in referred_to(self.envoy.routes):
            assert name in self.envoy.clusters, f"{name} is no cluster"
            assert b"10.0.0." in self.envoy.endpoints[name], f"{name} has no replica"

    def teardown(self) -> None:
        if hasattr(self, "conversation"):
            self.settle()


TestLostStreams = LostStreams.TestCase
TestLostStreams.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
