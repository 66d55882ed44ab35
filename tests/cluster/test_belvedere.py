"""The whole of Belvedere on a cluster, from `helm install` to nothing left: train, compile, serve, replace, revert, scale.

The tests build on each other, in their order: a fixture brings the cluster to a point of the story and keeps it there.
"""

from __future__ import annotations

import numpy as np
import pytest

from belvedere_serving.triton.options import version_number

from .cluster import PATIENCE_SECONDS
from .load import Load
from .release import (
    HELM_WAITS,
    Release,
    embed,
    gateway,
    imported,
    model_service,
    training_run,
    wait_answered_by,
)

pytestmark = [pytest.mark.slow, pytest.mark.cluster]


def test_the_chart_passes_its_own_test(release: Release) -> None:
    release.helm("test", "belvedere", HELM_WAITS)


def test_a_run_trains_in_ray_pods_and_becomes_a_version(release: Release, version: str) -> None:
    run = release.get("trainingrun", version)
    assert run["status"]["modelVersion"] == version
    assert run["status"]["gates"][0]["passed"]
    made = release.get("modelversion", version)
    assert made["spec"]["digest"].startswith("sha256:")
    assert made["spec"]["lineage"]["trainingRun"] == version


def test_a_run_that_is_suspended_gives_its_place_in_the_queue_up(release: Release, data: str) -> None:
    run = training_run("shapes-queued", data)
    for suspend, condition in ((False, "create"), (True, "delete")):
        release.apply({**run, "spec": {**run["spec"], "queue": "research", "suspend": suspend}})
        release.wait("rayjob", "shapes-queued-1", condition)


def test_an_engine_is_built_by_a_job_and_agrees_with_its_source(release: Release, engine: str) -> None:
    status = release.get("engine", engine)["status"]
    assert status["digest"].startswith("sha256:")
    assert min(parity["cosineMin"] for parity in status["parity"].values()) >= 0.99


def test_a_client_outside_is_answered_through_the_gateway(release: Release, service: str, version: str) -> None:
    with gateway(release) as address:
        embedding, by = embed(address, "a red circle", "a blue square")
    assert by == version
    np.testing.assert_allclose(np.linalg.norm(embedding, axis=1), 1, atol=1e-4)


def test_a_good_candidate_is_promoted(release: Release, candidate: str, service: str) -> None:
    with gateway(release) as address, Load(address) as load:
        release.apply(model_service(candidate))
        release.wait("modelservice", service, f"jsonpath={{.status.stable.version}}={candidate}")
    assert load.versions[candidate]


def test_a_bad_candidate_is_reverted(release: Release, version: str, service: str) -> None:
    stable = release.get("modelservice", service)["status"]["stable"]["version"]
    candidate, tag = "shapes-v3", "imports/shapes-v3"
    release.job("derive", "belvedere", "train", "derive", f"--from=models/{version}", "--fault=failing", f"--tag={tag}")
    imported(release, tag, candidate)
    with gateway(release) as address, Load(address):
        release.apply(model_service(candidate))
        release.wait("modelservice", service, "jsonpath={.status.rollout.phase}=Aborted")
        assert release.get("modelservice", service)["status"]["stable"]["version"] == stable
        wait_answered_by(address, stable, "a red circle")
    # As a person would: from here on nothing that is changed is a reason to try it again.
    release.apply(model_service(stable))


def test_triton_pods_answer_as_rays_do(
    release: Release, version: str, candidate: str, service: str, triton: None
) -> None:
    name = "shapes-triton"
    release.apply(model_service(version, name=name, backend="triton"))
    release.wait("modelservice", name, "condition=Ready")
    texts = ("a red circle", "a blue square")
    with gateway(release) as address:
        of_ray, _ = embed(address, *texts)
        of_triton, by = embed(address, *texts, service=f"{release.namespace}/{name}")
        assert by == str(version_number(version)), "Triton has no names"
        np.testing.assert_allclose((of_ray * of_triton).sum(axis=1), 1, atol=1e-3)
        release.apply(model_service(candidate, name=name, backend="triton"))
        release.wait("modelservice", name, f"jsonpath={{.status.candidate.version}}={candidate}")
        release.belvedere("rollout", "promote", name, f"--timeout={PATIENCE_SECONDS}")
        release.wait("modelservice", name, f"jsonpath={{.status.stable.version}}={candidate}")
        release.wait("deployment", f"{name}-{version}", "delete")
        wait_answered_by(address, str(version_number(candidate)), *texts, service=f"{release.namespace}/{name}")
    assert "Promote" in release.belvedere("rollout", "history", name)
    release.cluster.kubectl("delete", "modelservice", name, "-n", release.namespace, f"--timeout={PATIENCE_SECONDS}s")
    release.wait("deployment", f"{name}-{candidate}", "delete")


def test_it_scales_out_and_in(release: Release, service: str) -> None:
    for replicas in (2, 1):
        release.scale(service, replicas)
