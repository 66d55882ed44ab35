"""What is refused, in which words; and that schema and pydantic models agree on what is allowed."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from belvedere_platform.errors import InvalidInput
from belvedere_platform.resources import Engine, ModelService, ModelVersion, TrainingRun
from belvedere_platform.resources.crd import schema_of
from belvedere_platform.resources.explain import example_of
from belvedere_platform.resources.rules import cel_value
from belvedere_platform.resources.validation import admit


def service(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "belvedere.dev/v1alpha1",
        "kind": "ModelService",
        "metadata": {"name": "emoji"},
        "spec": {"model": "emoji", "version": "v1", **spec},
    }


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ({"backend": "kserve"}, "spec.backend is 'kserve'; it must be rayServe or triton"),
        (
            {"engine": {"target": {"precision": "fp8"}}},
            "spec.engine.target.precision is 'fp8'; it must be auto, fp32, bf16, fp16 or int8",
        ),
        ({"slo": {"availability": 1}}, "spec.slo.availability is 1; it must be greater than 0 and less than 1"),
        ({"rolout": {}}, "spec.rolout is not a field; did you mean rollout?"),
        (
            {"batching": {"max_batch_size": 4}},
            "spec.batching.max_batch_size is not a field; did you mean maxBatchSize?",
        ),
        ({"routing": {"zzz": 1}}, "spec.routing.zzz is not a field; known are default, hosts, retries, timeoutSeconds"),
        ({"scaling": {"minReplicas": 2.5}}, "spec.scaling.minReplicas is 2.5; it must be a whole number"),
        ({"scaling": {"minReplicas": True}}, "spec.scaling.minReplicas is True; it must be a whole number"),
        ({"rollout": {"steps": []}}, "spec.rollout.steps has 0 entries; it must have at least 1"),
        ({"rollout": {"steps": [{}]}}, "spec.rollout.steps[0].weight is missing; it must be a whole number"),
        ({"version": "x" * 64}, "it must have at most 63 characters"),
        ({"version": "v1\n"}, "it must match ^[a-z0-9]"),
        (
            {"server": {"models": ["caption", "translate"]}},
            "spec.server.models[1] is 'translate'; it must be embed_text, embed_image, match, explain, caption or answer",
        ),
        ({"server": {"plugins": "plugins"}}, "spec.server.plugins is 'plugins'; it must match ^/"),
        (
            {"server": {"writing": {"cacheBlocks": 0}}},
            "spec.server.writing.cacheBlocks is 0; it must be at least 1",
        ),
        (
            {"backend": "triton", "server": {"plugins": "/plugins"}},
            "server.models and server.plugins are for backend rayServe; Triton serves all models of an engine",
        ),
        (
            {"backend": "triton", "server": {"models": ["caption"], "writing": {}}},
            "server.models and server.plugins are for backend rayServe; Triton serves all models of an engine",
        ),
        ({"server": {"instances": 2}}, "server.instances is for backend triton; of rayServe there are more replicas"),
        (
            {"backend": "triton", "engine": {"target": {"runtime": "litert"}}},
            "engine.target.runtime litert is for backend rayServe",
        ),
        ({"scaling": {"minReplicas": 3}}, "spec.scaling: scaling.minReplicas must not be greater than"),
        ({"slo": {"availability": float("nan")}}, "spec.slo.availability is nan"),
    ],
)
def test_a_refusal_names_the_field_the_value_and_what_is_allowed(spec: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        admit(service(**spec))
    assert sentence in str(refused.value)
    assert str(refused.value).startswith("ModelService emoji: ")


def test_everything_wrong_is_said_at_once() -> None:
    with pytest.raises(InvalidInput, match=r"backend.*; .*hosts"):
        admit(service(backend="x", routing={"hosts": "y"}))


def test_the_name_must_fit_a_label() -> None:
    with pytest.raises(InvalidInput, match="name must have at most 63 characters"):
        admit(service() | {"metadata": {"name": "x" * 64}})


def test_a_gate_can_be_switched_off_by_null() -> None:
    assert admit(service(rollout={"gates": {"latency": None}}))["spec"]["rollout"]["gates"] == {
        "errors": {"enabled": True, "maximumRatio": 2},
        "latency": None,
    }


def test_other_kinds_pass_unread() -> None:
    manifest = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "anything": None}
    assert admit(manifest) is manifest


def test_an_unknown_kind_of_ours_is_refused() -> None:
    with pytest.raises(InvalidInput, match="it must be Engine, ModelService"):
        admit(service() | {"kind": "Model"})


@pytest.mark.parametrize("resource", [TrainingRun, ModelVersion, Engine, ModelService], ids=lambda kind: kind.kind_name)
def test_schema_and_model_fill_in_the_same_defaults(resource: Any) -> None:
    schema = schema_of(resource)["properties"]["spec"]
    manifest = {
        "apiVersion": "belvedere.dev/v1alpha1",
        "kind": resource.kind_name,
        "metadata": {"name": "a"},
        "spec": {name: example_of(schema["properties"][name]) for name in schema["required"]},
    }
    read = resource.model_validate(manifest)
    assert resource.model_validate(admit(manifest)) == read
    assert resource.model_validate(admit(read.model_dump(by_alias=True, mode="json"))) == read


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 5),
    st.floats(-2, 2),
    st.sampled_from(["", "v1", "rayServe", "X"]),
    st.just([]),
    st.just({}),
    st.lists(st.fixed_dictionaries({"weight": st.integers(0, 101)}), max_size=3),
)
PATHS = st.sampled_from(
    [
        "version", "backend", "slo.availability", "slo.latency.objective", "scaling.minReplicas", "scaling.targetInFlight",
        "rollout.steps", "rollout.paused", "rollout.gates.errors", "rollout.noData", "routing.default", "routing.hosts",
        "engine", "resources.memory", "batching.maxBatchSize", "surprise",
    ]
)  # fmt: skip


@settings(deadline=None, max_examples=150)
@given(changes=st.dictionaries(PATHS, VALUES, max_size=3))
def test_what_the_schema_admits_the_model_reads(changes: dict[str, Any]) -> None:
    """A controller must never meet an object that the store took and that its own model refuses."""
    manifest = service()
    for path, value in changes.items():
        *parents, name = path.split(".")
        place = manifest["spec"]
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                return
        place[name] = value
    try:
        admitted = admit(manifest)
    except InvalidInput:
        return
    try:
        ModelService.model_validate(admitted)
    except ValidationError as error:
        raise AssertionError(f"admitted, but not read: {admitted['spec']}") from error


def test_a_number_without_a_fraction_is_a_double_where_the_schema_says_number() -> None:
    schema = {"type": "object", "additionalProperties": {"type": "number"}}
    assert cel_value(schema, {"a": 1}) == cel_value(schema, {"a": 1.0})
    assert type(cel_value({"type": "integer"}, 1)) is not type(cel_value({"type": "number"}, 1))
