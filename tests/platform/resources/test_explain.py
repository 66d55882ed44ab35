"""`explain`: every field can be asked for, and its example is one that the schema allows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from belvedere_platform.errors import InvalidInput
from belvedere_platform.resources import RESOURCES, Resource
from belvedere_platform.resources.crd import schema_of
from belvedere_platform.resources.explain import example_of, explain
from belvedere_platform.resources.validation import problems


def paths(schema: dict[str, Any], at: str) -> Iterator[tuple[str, dict[str, Any]]]:
    yield at, schema
    while schema["type"] == "array":
        schema = schema["items"]
    for name, child in schema.get("properties", {}).items():
        yield from paths(child, f"{at}.{name}")


@pytest.mark.parametrize("resource", RESOURCES, ids=lambda resource: resource.kind_name)
def test_every_field_is_explained_with_an_example_that_is_allowed(resource: type[Resource]) -> None:
    for path, schema in paths(schema_of(resource), resource.kind_name.lower()):
        text = explain(path)
        assert text.splitlines()[0].startswith(f"{path} <")
        if ".spec" in path:
            assert "example:" in text
            assert list(problems(schema, example_of(schema))) == []


@pytest.mark.parametrize(
    ("path", "lines"),
    [
        ("msvc.spec.rollout.steps", ["list of object", "at least 1 entries", "weight", "example:"]),
        ("modelservice.spec.rollout", ["rule: rollout.steps: each weight must be greater than the one before it"]),
        ("modelservices.spec.rollout.noData", ["default: Hold", "allowed: Hold"]),
        ("engine.spec.parity.cosineMinimum", ["default: 0.98", "at least -1", "at most 1"]),
        ("modelservice.status.conditions", ["RolloutProgressing: Progressing, Complete"]),
        ("modelversion.spec.metrics", ["map of number"]),
        ("trainingrun.spec.data", ["required"]),
        ("trainingrun.apiVersion", ["belvedere.dev/v1alpha1"]),
    ],
)
def test_it_says_type_default_bounds_rules_and_reasons(path: str, lines: list[str]) -> None:
    for line in lines:
        assert line in explain(path)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("model", "known are trainingrun, modelversion, engine, modelservice"),
        ("engine.spec.target.gpu", "its fields are runtime, precision, device"),
        ("engine.spec.modelVersion.name", "it has no fields"),
    ],
)
def test_what_does_not_exist_is_refused_with_what_does(path: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        explain(path)
