"""A budget that the nodes give: what they have, less what replicas and other runs hold."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from belvedere_operators.controllers.trainingrun.accelerators import Accelerators, accelerators_for
from belvedere_platform.errors import NotFound
from belvedere_platform.resources.training_run import TrainingRun
from belvedere_platform.store import Listing
from belvedere_platform.store.kinds import DEPLOYMENT, NODE, RAY_JOB, RAY_SERVICE

OURS = {"app.kubernetes.io/managed-by": "belvedere"}
POD = {"spec": {"containers": [{"resources": {"limits": {"nvidia.com/gpu": "1"}}}]}}


class Counted:
    """What the kinds that count have in them."""

    def __init__(self) -> None:
        group = {"replicas": 2, "template": POD}
        self.objects: dict[Any, list[dict[str, Any]]] = {
            NODE: [{"status": {"allocatable": {"nvidia.com/gpu": "4"}}} for _ in range(3)],
            RAY_JOB: [{"metadata": {"annotations": {"belvedere.dev/accelerators": "5"}}, "spec": {}}],
            RAY_SERVICE: [{"spec": {"rayClusterConfig": {"workerGroupSpecs": [group]}}}],
            DEPLOYMENT: [{"spec": {"replicas": 1, "template": POD}}],
        }

    async def list(self, kind: Any, namespace: str | None = None, *, labels: Any = None, **_: Any) -> Listing:
        if kind is NODE and labels:
            raise NotFound("nodes are not ours")
        return Listing(items=self.objects[kind], resource_version="1")


def run(gpu: float) -> TrainingRun:
    spec = {"model": "clip", "data": {"dataset": "emoji"}, "workers": {"resources": {"gpu": gpu}}}
    head = {"apiVersion": "belvedere.dev/v1alpha1", "kind": "TrainingRun", "metadata": {"name": "a"}}
    return TrainingRun.model_validate({**head, "spec": {**spec, "optimization": {"pairs": 1000}}})


@pytest.mark.parametrize(
    ("settings", "gpu", "found"),
    [
        ({"count_accelerators": True}, 1, Accelerators(total=12, free=4)),
        ({"accelerators": 6.0}, 1, Accelerators(total=6, free=1)),
        ({"count_accelerators": True}, 0, None),
        ({}, 1, None),
    ],
    ids=["nodes", "a person's number, which is for training alone", "asks for none", "nobody counts"],
)
async def test_what_is_free(bench: Any, settings: dict[str, Any], gpu: float, found: Accelerators | None) -> None:
    asked = replace(bench.context.settings, **settings)
    assert await accelerators_for(replace(bench.context, store=Counted(), settings=asked), run(gpu)) == found
