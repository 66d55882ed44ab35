"""A RayCluster gets the number of workers that its RayService asks for: KubeRay does not see to it."""

from __future__ import annotations

import pytest

from belvedere_operators.controllers.modelservice.workers import outgrown, resized


def ray_service(replicas: int, status: dict | None = None) -> dict:
    group = {"groupName": "replicas", "replicas": replicas, "minReplicas": replicas, "maxReplicas": replicas}
    made = {"metadata": {"name": "s", "namespace": "n"}, "spec": {"rayClusterConfig": {"workerGroupSpecs": [group]}}}
    return {**made, "status": status} if status else made


def running(workers: int | None) -> dict:
    cluster = {} if workers is None else {"desiredWorkerReplicas": workers}
    return ray_service(1, {"activeServiceStatus": {"rayClusterName": "s-abc", "rayClusterStatus": cluster}})


@pytest.mark.parametrize(
    ("found", "name"),
    [
        (running(1), "s-abc"),
        (running(2), None),
        (running(None), None),  # no KubeRay tells of it: one machine
        (ray_service(1), None),
        (None, None),
    ],
)
def test_a_cluster_is_outgrown_when_kuberay_says_that_it_has_another_size(found, name):
    assert outgrown(ray_service(2), found) == name


def test_a_deployment_has_no_cluster():
    assert outgrown({"metadata": {}, "spec": {"replicas": 3}}, running(1)) is None


def test_only_the_size_is_changed():
    group = {"groupName": "replicas", "replicas": 1, "minReplicas": 1, "maxReplicas": 1, "template": {"spec": {}}}
    cluster = {"metadata": {"name": "s-abc", "namespace": "n", "uid": "1"}, "spec": {"workerGroupSpecs": [group]}}
    made = resized(cluster, ray_service(2))
    assert made["metadata"] == {"name": "s-abc", "namespace": "n"}
    assert made["spec"] == {"workerGroupSpecs": [{**group, "replicas": 2, "minReplicas": 2, "maxReplicas": 2}]}
