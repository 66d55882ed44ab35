"""One Envoy's stream, driven by hand."""

from __future__ import annotations

from typing import Any

import pytest
from envoy.service.discovery.v3 import discovery_pb2

from belvedere_serving.gateway.conversation import Conversation
from belvedere_serving.gateway.history import History
from belvedere_serving.gateway.snapshot import (
    CLUSTERS,
    ENDPOINTS,
    LISTENERS,
    TYPE_OF_ROUTES,
    Snapshot,
    build_snapshot,
    version_of,
)
from belvedere_serving.gateway.world import World


class Envoy:
    """Asks and accepts as Envoy does, and keeps what it took."""

    def __init__(self, conversation: Conversation) -> None:
        self.conversation = conversation
        self.order: list[str] = []
        self.clusters: tuple[str, ...] = ()

    def ask(self, type_url: str, *names: str, version: str = "", nonce: str = "", error: str = "") -> Any:
        request = discovery_pb2.DiscoveryRequest(
            type_url=type_url, resource_names=names, version_info=version, response_nonce=nonce
        )
        if error:
            request.error_detail.message = error
        return self.conversation.receive(request)

    def hear(self) -> Any:
        answer = self.conversation.next_answer()
        if answer is not None:
            self.order.append(answer.type_url.rpartition(".")[2])
        return answer

    def accept(self, answer: Any, *names: str) -> None:
        self.ask(answer.type_url, *names, version=answer.version_info, nonce=answer.nonce)


@pytest.fixture
def snapshot(route: Any, world: Any, replica: Any) -> Any:
    def build(*versions: str) -> Snapshot:
        weights = dict.fromkeys(versions, 100 // len(versions))
        state = world(route(weights), replicas={version: [replica()] for version in versions})
        return build_snapshot(state, tap_address="127.0.0.1", tap_port=1)

    return build


def names(*versions: str) -> list[str]:
    return [f"default/emoji/{version}/{protocol}" for version in versions for protocol in ("http", "grpc")]


def settle(envoy: Envoy, target: Snapshot, *versions: str) -> None:
    """Bring a fresh Envoy to a target."""
    envoy.conversation.retarget(target)
    envoy.ask(CLUSTERS)
    clusters = envoy.hear()
    envoy.ask(ENDPOINTS, *names(*versions))
    envoy.accept(clusters)
    envoy.accept(envoy.hear(), *names(*versions))
    envoy.ask(LISTENERS)
    envoy.ask(TYPE_OF_ROUTES, "gateway")
    for given in ((), ("gateway",)):
        answer = envoy.hear()
        envoy.accept(answer, *given)
    assert envoy.hear() is None
    assert not envoy.conversation.unfinished


@pytest.fixture
def envoy() -> Envoy:
    from belvedere_serving.gateway.listener import gateway_listener
    from belvedere_serving.gateway.messages import pack

    return Envoy(Conversation({"gateway": pack(gateway_listener("127.0.0.1", 1))}, History()))


def test_a_fresh_envoy_hears_what_is_referred_to_first(envoy: Envoy, snapshot: Any) -> None:
    settle(envoy, snapshot("v1"), "v1")
    assert envoy.order == ["Cluster", "ClusterLoadAssignment", "Listener", "RouteConfiguration"]


def test_a_new_version_is_routed_to_only_when_its_replicas_were_accepted(envoy: Envoy, snapshot: Any) -> None:
    settle(envoy, snapshot("v1"), "v1")
    envoy.order.clear()
    envoy.conversation.retarget(snapshot("v1", "v2"))
    clusters = envoy.hear()
    assert envoy.hear() is None, "waits until Envoy asks for the new replicas"
    # Envoy accepts changed clusters only after it got their replicas.
    envoy.ask(ENDPOINTS, *names("v1", "v2"), version=version_of({}), nonce="2")
    endpoints = envoy.hear()
    assert endpoints.type_url == ENDPOINTS
    assert envoy.hear() is None
    envoy.accept(endpoints, *names("v1", "v2"))
    assert envoy.hear() is None, "clusters are not accepted yet"
    envoy.accept(clusters)
    assert envoy.hear().type_url == TYPE_OF_ROUTES


def test_an_old_version_leaves_the_routes_before_its_clusters_go(envoy: Envoy, snapshot: Any) -> None:
    settle(envoy, snapshot("v1", "v2"), "v1", "v2")
    envoy.order.clear()
    envoy.conversation.retarget(snapshot("v2"))
    for given in (("gateway",), ()):
        envoy.accept(envoy.hear(), *given)
    assert envoy.order == ["RouteConfiguration", "Cluster"]


def test_an_envoy_that_comes_back_with_the_same_hears_nothing(envoy: Envoy, snapshot: Any) -> None:
    target = snapshot("v1")
    listeners = envoy.conversation._listeners
    returning = Envoy(Conversation(listeners, History()))
    returning.conversation.retarget(target)
    wanted = {name: target.endpoints[name] for name in names("v1")}
    returning.ask(CLUSTERS, version=version_of(target.clusters))
    returning.ask(ENDPOINTS, *names("v1"), version=version_of(wanted))
    returning.ask(LISTENERS, version=version_of(listeners))
    returning.ask(TYPE_OF_ROUTES, "gateway", version=version_of(target.routes))
    assert returning.hear() is None
    assert not returning.conversation.unfinished


def come_back(envoy: Envoy, before: Snapshot, *versions: str) -> None:
    """Ask as an Envoy does that lost its stream with this configuration."""
    wanted = {name: before.endpoints[name] for name in names(*versions)}
    envoy.ask(CLUSTERS, version=version_of(before.clusters))
    assert envoy.hear() is None, "its other requests come right behind"
    envoy.ask(ENDPOINTS, *names(*versions), version=version_of(wanted))
    envoy.ask(TYPE_OF_ROUTES, "gateway", version=version_of(before.routes))


def test_an_envoy_that_a_new_control_plane_does_not_know_leaves_old_clusters_before_they_go(
    envoy: Envoy, snapshot: Any
) -> None:
    returning = Envoy(Conversation(envoy.conversation._listeners, History()))
    returning.conversation.retarget(snapshot("v2"))
    come_back(returning, snapshot("v1", "v2"), "v1", "v2")
    returning.accept(returning.hear(), *names("v1", "v2"))
    returning.accept(returning.hear(), "gateway")
    returning.accept(returning.hear())
    assert returning.order == ["ClusterLoadAssignment", "RouteConfiguration", "Cluster"]


@pytest.mark.parametrize("remembered", [False, True])
def test_an_envoy_that_is_known_keeps_old_clusters_until_its_routes_have_left_them(
    envoy: Envoy, snapshot: Any, remembered: bool
) -> None:
    settle(envoy, snapshot("v1"), "v1")
    history = History() if remembered else envoy.conversation._history
    if remembered:
        history.recall(snapshot("v1"))
    returning = Envoy(Conversation(envoy.conversation._listeners, history))
    returning.conversation.retarget(snapshot("v2"))
    come_back(returning, snapshot("v1"), "v1")
    both = returning.hear()
    assert len(both.resources) == 5, "the tap, and two of each version"


def test_an_envoy_that_lost_its_stream_while_clusters_warmed_is_told_their_replicas_again(
    envoy: Envoy, snapshot: Any
) -> None:
    settle(envoy, snapshot("v1"), "v1")
    returning = Envoy(Conversation(envoy.conversation._listeners, envoy.conversation._history))
    target = snapshot("v1")
    returning.conversation.retarget(target)
    wanted = {name: target.endpoints[name] for name in names("v1")}
    # It does not speak of clusters before these have their replicas, though it has been told the very same ones before.
    returning.ask(ENDPOINTS, *names("v1"), version=version_of(wanted))
    assert returning.hear().type_url == ENDPOINTS


def test_replicas_of_changed_clusters_do_not_wait_for_those_of_clusters_that_envoy_has_not_heard_of(
    envoy: Envoy, snapshot: Any
) -> None:
    settle(envoy, snapshot("v1"), "v1")
    envoy.conversation.retarget(snapshot("v1", "v2"))
    clusters = envoy.hear()
    envoy.conversation.retarget(snapshot("v1", "v2", "v3"))
    envoy.ask(ENDPOINTS, *names("v1", "v2"), version="before", nonce="2")
    assert envoy.hear().type_url == ENDPOINTS, "else the clusters would never be accepted"
    envoy.accept(clusters)


def test_routes_do_not_return_to_clusters_that_are_just_being_taken_away(envoy: Envoy, snapshot: Any) -> None:
    settle(envoy, snapshot("v1", "v2"), "v1", "v2")
    envoy.conversation.retarget(snapshot("v2"))
    envoy.accept(envoy.hear(), "gateway")
    without = envoy.hear()
    assert without.type_url == CLUSTERS
    # What Envoy has by its last word is what the old target needs; but it is about to lose it.
    envoy.conversation.retarget(snapshot("v1", "v2"))
    assert envoy.hear() is None
    envoy.accept(without)
    assert envoy.hear().type_url == CLUSTERS


def test_a_refused_version_is_not_sent_again_and_the_next_one_is(envoy: Envoy, snapshot: Any) -> None:
    settle(envoy, snapshot("v1", "v2"), "v1", "v2")
    envoy.conversation.retarget(snapshot("v2"))
    answer = envoy.hear()
    refusal = envoy.ask(answer.type_url, "gateway", version="before", nonce=answer.nonce, error="no")
    assert refusal is not None
    assert (refusal.type_url, refusal.version, refusal.reason) == (TYPE_OF_ROUTES, answer.version_info, "no")
    assert envoy.hear() is None
    envoy.conversation.retarget(snapshot("v1"))
    assert envoy.hear().type_url == TYPE_OF_ROUTES


def test_a_word_about_an_older_answer_is_ignored(envoy: Envoy, snapshot: Any) -> None:
    envoy.conversation.retarget(snapshot("v1"))
    envoy.ask(CLUSTERS)
    answer = envoy.hear()
    assert envoy.ask(CLUSTERS, version="old", nonce="other", error="late") is None
    assert envoy.hear() is None
    envoy.accept(answer)
    envoy.ask(ENDPOINTS, *names("v1"))
    assert envoy.hear().type_url == ENDPOINTS


def test_a_gateway_without_services_still_gets_its_listener(envoy: Envoy, snapshot: Any) -> None:
    envoy.conversation.retarget(build_snapshot(World(), tap_address="127.0.0.1", tap_port=1))
    envoy.ask(CLUSTERS)
    envoy.accept(envoy.hear())
    envoy.ask(LISTENERS)
    assert envoy.hear().type_url == LISTENERS
