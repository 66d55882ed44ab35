"""Whole rollouts, from one version to the next, on the real embedded store."""

from __future__ import annotations

import json

import pytest

from belvedere_operators.controllers.modelservice import decide, state
from belvedere_operators.controllers.modelservice.state import intent_of
from belvedere_operators.runtime import Terminal
from belvedere_platform.store.kinds import (
    CONFIG_MAP,
    DEPLOYMENT,
    EVENT,
    MODEL_SERVICE,
    PROMETHEUS_RULE,
    RAY_SERVICE,
    SERVICE,
)


async def test_the_first_version_is_served_without_a_rollout(serving):
    status = await serving.status()
    assert status["stable"]["version"] == "v1"
    assert status["stable"]["routableReplicas"] == 1
    assert "rollout" not in status
    assert (await serving.condition("Ready"))["status"] == "True"
    assert (await serving.condition("RolloutProgressing"))["reason"] == "Complete"
    assert await serving.get(PROMETHEUS_RULE, "search-slo") is not None


async def test_a_look_that_finds_nothing_is_no_news(world):
    await world.add_version("v1")
    await world.ask("v1")
    await world.reconcile()
    before = await world.get(MODEL_SERVICE, "search")
    assert (await world.condition("SLOMet"))["message"] == "not measured yet"
    await world.clock.advance(60)
    await world.reconcile()
    assert await world.get(MODEL_SERVICE, "search") == before


async def test_nothing_is_routed_before_a_replica_is_ready(world):
    await world.add_version("v1")
    world.unroutable.add("v1")
    await world.ask("v1")
    await world.reconcile()
    await world.run(3)
    assert await world.route() is None
    assert (await world.condition("Ready"))["reason"] == "WaitingForReplicas"


async def test_replicas_that_the_gateway_does_not_know_yet_do_not_make_a_service_ready(world):
    await world.add_version("v1")
    await world.ask("v1")
    await world.reconcile()
    await world.settle_replicas()
    for _ in range(3):
        await world.clock.advance(2)
        await world.reconcile()
    assert (await world.condition("Ready"))["reason"] == "WaitingForGateway"
    await world.run(3)
    assert (await world.condition("Ready"))["reason"] == "Routable"
    # A gateway that restarts says nothing for a while, and its Envoys go on serving.
    world.traffic.rate, world.traffic.effective = 0.0, {}
    await world.clock.advance(2)
    await world.reconcile()
    assert (await world.condition("Ready"))["status"] == "True"


async def test_without_metrics_the_replicas_word_is_enough(world):
    world.traffic.down = True
    await world.add_version("v1")
    await world.ask("v1")
    await world.run(4)
    assert (await world.condition("Ready"))["status"] == "True"


async def test_a_good_candidate_is_promoted_step_by_step(serving):
    await serving.add_version("v2")
    await serving.ask("v2")
    await serving.run(300, until="Promoted")
    status = await serving.status()
    assert status["rollout"]["phase"] == "Promoted", status["evidence"]
    assert status["stable"]["version"] == "v2"
    assert await serving.weights() == {"v2": 100}
    moves = [one["inputs"]["toWeight"] for one in status["decisions"] if one["decision"] in ("SetWeight", "Promote")]
    assert moves == [10, 50, 100]
    assert await serving.running() == {"v1", "v2"}
    await serving.run(22)
    assert await serving.running() == {"v2"}


async def test_a_failing_candidate_loses_its_traffic_in_the_deciding_reconcile(serving):
    await serving.add_version("v2")
    serving.traffic.behaviour["v2"].error_rate = 0.4
    await serving.ask("v2")
    passed = await serving.run(120, until="Aborted")
    assert passed < 60
    assert await serving.weights() == {"v1": 100}
    assert (await serving.decisions())[-1] == ("Abort", "judge:errors")
    assert (await serving.condition("Degraded"))["reason"] == "CandidateRejected"
    await serving.run(12)
    assert await serving.running() == {"v1"}
    events = [one["reason"] for one in (await serving.store.list(EVENT, "default")).items]
    assert "Abort" in events


async def test_a_slow_candidate_is_reverted(serving):
    await serving.add_version("v2")
    serving.traffic.behaviour["v2"].milliseconds = 400
    await serving.ask("v2")
    assert await serving.run(120, until="Aborted") < 60
    assert (await serving.decisions())[-1] == ("Abort", "judge:latency")


async def test_a_wrong_candidate_is_seen_by_the_shadow_gate_alone(serving):
    await serving.add_version("v2")
    serving.traffic.behaviour["v2"].agreement = {"embed_text": 0.02, "embed_image": 1.0}
    await serving.ask("v2", rollout={"gates": {"errors": {}, "latency": {}, "shadow": {"samplePercent": 20}}})
    assert await serving.run(120, until="Aborted") < 60
    assert (await serving.decisions())[-1] == ("Abort", "shadow")
    assert "shadow" not in (await serving.route())


async def test_an_aborted_candidate_is_not_tried_again_until_the_intent_changes(serving):
    await serving.add_version("v2")
    serving.traffic.behaviour["v2"].error_rate = 0.5
    await serving.ask("v2")
    await serving.run(120, until="Aborted")
    await serving.run(30)
    await serving.ask("v2", scaling={"minReplicas": 1, "maxReplicas": 2})
    await serving.run(10)
    assert (await serving.status())["rollout"]["phase"] == "Aborted"
    serving.traffic.behaviour["v2"].error_rate = 0.0
    await serving.ask("v2", rollout={"deadlineSeconds": 700})
    await serving.run(300, until="Promoted")
    assert (await serving.status())["stable"]["version"] == "v2"


async def test_an_aborted_candidate_is_not_tried_again_because_belvedere_was_upgraded(serving, monkeypatch):
    await serving.add_version("v2")
    serving.traffic.behaviour["v2"].error_rate = 0.5
    await serving.ask("v2")
    await serving.run(120, until="Aborted")
    for upgrade in range(2):
        # New fields and other defaults: of the same spec a newer version makes another digest.
        monkeypatch.setattr(state, "intent_of", lambda spec, upgrade=upgrade: f"{upgrade}/{intent_of(spec)}")
        monkeypatch.setattr(decide, "intent_of", state.intent_of)
        await serving.run(3)
        assert (await serving.status())["rollout"]["phase"] == "Aborted"
        await serving.ask("v2", scaling={"minReplicas": 1, "maxReplicas": 2 + upgrade})
        await serving.run(3)
        assert (await serving.status())["rollout"]["phase"] == "Aborted"
    await serving.ask("v2", rollout={"deadlineSeconds": 700})
    await serving.run(3)
    assert (await serving.status())["rollout"]["phase"] != "Aborted"


async def test_without_traffic_nothing_moves(serving):
    serving.traffic.rate = 0.0
    await serving.add_version("v2")
    await serving.ask("v2")
    await serving.run(60)
    status = await serving.status()
    assert status["rollout"]["phase"] == "Progressing"
    assert status["candidate"]["desiredWeight"] == 10
    assert (await serving.condition("RolloutProgressing"))["reason"] == "NoTraffic"


async def test_without_prometheus_nothing_moves_and_the_reason_is_said(serving):
    await serving.add_version("v2")
    await serving.ask("v2")
    await serving.run(4)
    serving.traffic.down = True
    await serving.run(30)
    assert (await serving.status())["candidate"]["desiredWeight"] == 10
    assert (await serving.condition("Degraded"))["reason"] == "MetricsUnavailable"
    serving.traffic.down = False
    await serving.run(300, until="Promoted")
    assert (await serving.status())["stable"]["version"] == "v2"


async def test_a_candidate_whose_engine_fails_parity_gets_no_traffic(serving):
    await serving.add_version("v2", engine_reason="ParityFailed")
    await serving.ask("v2")
    await serving.run(5)
    assert (await serving.condition("RolloutProgressing"))["reason"] == "EngineRefused"
    assert (await serving.condition("EngineReady"))["reason"] == "ParityFailed"
    assert "cosine 0.41" in (await serving.condition("RolloutProgressing"))["message"]
    assert await serving.weights() == {"v1": 100}
    assert await serving.running() == {"v1"}


async def test_a_missing_version_is_refused_with_its_name(serving):
    await serving.ask("v9")
    await serving.run(3)
    accepted = await serving.condition("Accepted")
    assert accepted["reason"] == "ModelVersionNotFound"
    assert "v9" in accepted["message"]
    assert await serving.weights() == {"v1": 100}


async def test_a_version_of_another_model_is_refused(serving):
    await serving.add_version("v2", model="other")
    await serving.ask("v2")
    await serving.run(3)
    assert (await serving.condition("Accepted"))["reason"] == "ModelMismatch"


async def test_scale_out_never_touches_the_rollout_and_comes_back_in(serving):
    await serving.fire("ServiceOverloaded", "scaleOut")
    serving.traffic.in_flight = 12.0
    await serving.run(3)
    assert await serving.replicas_of("v1") == 2
    await serving.run(12)
    assert await serving.replicas_of("v1") == 3
    await serving.fire("ServiceOverloaded", "scaleOut", status="resolved")
    serving.traffic.in_flight = 0.5
    await serving.ask("v1", scaling={"minReplicas": 1, "maxReplicas": 3, "scaleInDelaySeconds": 20})
    await serving.run(25)
    assert await serving.replicas_of("v1") == 2
    decisions = [one[0] for one in await serving.decisions()]
    assert decisions == ["ScaleOut", "ScaleOut", "ScaleIn"]


async def test_the_stable_version_stays_warm_during_a_rollout(serving):
    await serving.ask("v1", scaling={"minReplicas": 2, "maxReplicas": 3})
    await serving.run(5)
    serving.traffic.in_flight = 0.0
    await serving.add_version("v2")
    await serving.ask(
        "v2", scaling={"minReplicas": 1, "maxReplicas": 3, "scaleInDelaySeconds": 1}, rollout={"paused": True}
    )
    await serving.run(30)
    assert await serving.replicas_of("v1") == 2


async def test_a_rollout_that_does_not_fit_waits_and_says_what_is_missing(serving):
    from dataclasses import replace

    serving.settings = replace(serving.settings, cluster_cpus=1.0)
    serving.use(serving.store)
    await serving.add_version("v2")
    await serving.ask("v2")
    await serving.run(5)
    capacity = await serving.condition("CapacityAvailable")
    assert (capacity["status"], capacity["reason"]) == ("False", "WaitingForCapacity")
    assert "1 x v2" in capacity["message"]
    assert await serving.get(RAY_SERVICE, "search-v2") is None


async def test_with_triton_a_version_is_a_deployment_and_a_service_and_rolls_out_alike(world):
    await world.add_version("v1")
    await world.add_version("v2")
    await world.ask("v1", backend="triton")
    await world.run(6)
    assert await world.weights() == {"v1": 100}
    assert await world.get(SERVICE, "search-v1") is not None
    assert await world.get(RAY_SERVICE, "search-v1") is None
    await world.ask("v2", backend="triton")
    await world.run(400, until="Promoted")
    assert await world.weights() == {"v2": 100}
    assert await world.running() == {"v1", "v2"}
    await world.run(120)
    assert await world.running() == {"v2"}
    assert await world.get(SERVICE, "search-v1") is None


async def test_triton_replicas_count_against_the_clusters_cpus(world):
    from dataclasses import replace

    world.settings = replace(world.settings, cluster_cpus=1.0)
    world.use(world.store)
    await world.add_version("v1")
    await world.add_version("v2")
    await world.ask("v1", backend="triton")
    await world.run(6)
    await world.ask("v2", backend="triton")
    await world.run(5)
    assert (await world.condition("CapacityAvailable"))["reason"] == "WaitingForCapacity"
    assert await world.get(DEPLOYMENT, "search-v2") is None


async def test_a_candidate_that_loses_its_replicas_loses_its_traffic(serving):
    await serving.add_version("v2")
    await serving.ask("v2")
    await serving.run(5)
    assert (await serving.weights())["v2"] == 10
    serving.unroutable.add("v2")
    await serving.run(2)
    assert await serving.weights() == {"v1": 100}
    assert (await serving.status())["rollout"]["phase"] == "Preparing"


async def test_a_lost_journal_does_not_put_an_unproven_version_first(serving):
    await serving.add_version("v2")
    await serving.ask("v2")
    await serving.run(5)
    await serving.store.delete(CONFIG_MAP, "search-evidence", "default")
    await serving.run(1)
    status = await serving.status()
    assert status["stable"]["version"] == "v1"
    assert status["rollout"]["phase"] == "Preparing"
    assert await serving.weights() == {"v1": 100}
    await serving.run(300, until="Promoted")
    assert (await serving.status())["stable"]["version"] == "v2"


async def test_a_journal_that_cannot_be_read_stops_everything(serving):
    broken = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "search-evidence", "namespace": "default"}}
    await serving.apply({**broken, "data": {"evidence.json": "{"}})
    with pytest.raises(Terminal, match="delete it"):
        await serving.reconcile()


async def test_between_looks_nothing_is_written(serving):
    await serving.add_version("v2")
    await serving.ask("v2")
    await serving.run(5)
    await serving.reconcile()
    before = await serving.store.list(CONFIG_MAP, "default")
    await serving.clock.advance(0.2)
    await serving.reconcile()
    assert (await serving.store.list(CONFIG_MAP, "default")).resource_version == before.resource_version


async def test_after_a_start_a_service_that_stands_is_looked_at_in_its_turn_and_nothing_is_written(serving):
    await serving.run(5)
    status, before = await serving.status(), serving.traffic.num_asked
    assert (await serving.condition("SLOMet"))["message"] == "no requests in the window"
    serving.use(serving.store)
    await serving.reconcile()
    assert serving.traffic.num_asked == before
    assert await serving.status() == status
    await serving.run(3)
    assert before < serving.traffic.num_asked <= before + 2


async def test_after_a_start_a_service_that_was_changed_meanwhile_is_looked_at_at_once(serving):
    await serving.run(5)
    before = serving.traffic.num_asked
    await serving.ask("v1", slo={"availability": 0.9})
    serving.use(serving.store)
    await serving.reconcile()
    assert serving.traffic.num_asked == before + 1


async def test_another_version_replaces_the_candidate(serving):
    for version in ("v2", "v3"):
        await serving.add_version(version)
    await serving.ask("v2")
    await serving.run(5)
    await serving.ask("v3")
    await serving.run(2)
    assert "v2" not in await serving.weights()
    await serving.run(300, until="Promoted")
    assert (await serving.status())["stable"]["version"] == "v3"


async def test_a_deleted_service_takes_its_children_along(serving):
    from belvedere_platform.store.kinds import MODEL_SERVICE

    await serving.store.delete(MODEL_SERVICE, "search", "default")
    await serving.reconcile()
    assert await serving.running() == set()
    assert await serving.get(CONFIG_MAP, "search-evidence") is None


async def test_a_wish_that_comes_with_the_version_waits_for_the_version(serving):
    wish = json.dumps({"verb": "promote", "candidate": "v2", "id": "1"})
    await serving.ask("v2", annotations={"belvedere.dev/rollout-request": wish})
    await serving.run(3)
    assert (await serving.journal()).get("handledRequest") is None
    await serving.add_version("v2")
    await serving.run(20, until="Promoted")
    assert await serving.weights() == {"v2": 100}
    assert (await serving.journal())["handledRequest"] == "1"
