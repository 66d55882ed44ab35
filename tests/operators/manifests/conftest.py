"""One valid ModelService to build children from."""

from __future__ import annotations

import pytest

from belvedere_platform.resources import ModelService


@pytest.fixture
def owner():
    return {
        "apiVersion": "belvedere.dev/v1alpha1",
        "kind": "ModelService",
        "metadata": {"name": "search", "namespace": "shop", "uid": "u-1"},
        "spec": {
            "model": "clip",
            "version": "v1",
            "rollout": {"intervalSeconds": 2, "gates": {"shadow": {"samplePercent": 20}}},
            "resources": {"cpu": 0.5},
            "scaling": {"targetInFlight": 4},
        },
    }


@pytest.fixture
def spec(owner):
    return ModelService.model_validate(owner).spec
