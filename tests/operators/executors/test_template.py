"""What a pod template means: expansion, environment, mounted files, probes, and what is refused."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from belvedere_operators.executors.template import (
    ContainerPlan,
    PodPlace,
    Probe,
    Sources,
    expand,
    fingerprint_of,
    plan_pod,
    references,
)
from belvedere_platform.errors import InvalidInput, NotFound

PLACE = PodPlace(
    namespace="default",
    name="it-0",
    uid="u1",
    directory=Path("/home/pods/it"),
    claims=Path("/home/volumes"),
    environment={"PATH": "/bin", "BELVEDERE_HOME": "/home"},
)
SOURCES = Sources(
    config_maps={"settings": {"data": {"a": "1", "b.yml": "two"}}},
    secrets={"keys": {"data": {"token": base64.b64encode(b"hush").decode()}, "stringData": {"plain": "word"}}},
)


def container(**fields: Any) -> dict[str, Any]:
    return {"name": "main", "command": ["run"], **fields}


def plan(template_container: dict[str, Any], **spec: Any) -> ContainerPlan:
    template = {"spec": {"containers": [template_container], **spec}}
    return plan_pod(template, place=PLACE, sources=SOURCES).containers[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("$(A)", "1"),
        ("x$(A)y$(B)z", "x1y22z"),
        ("$(MISSING)", "$(MISSING)"),
        ("$$(A)", "$(A)"),
        ("$$$(A)", "$1"),
        ("$A $ ( ) $()", "$A $ ( ) $()"),
        ("$(A", "$(A"),
        ("$(C)", "$(A)"),
    ],
)
def test_expansion_is_the_kubelets(text: str, expected: str) -> None:
    assert expand(text, {"A": "1", "B": "22", "C": "$(A)"}) == expected


@given(st.text(alphabet="abc ./=-(){}"), st.dictionaries(st.text(alphabet="AB", min_size=1), st.text()))
def test_text_without_a_dollar_stays(text: str, variables: dict[str, str]) -> None:
    assert expand(text, variables) == text


def test_arguments_see_the_environment_and_variables_see_earlier_ones() -> None:
    made = plan(
        container(
            args=["--home=$(BELVEDERE_HOME)", "$(SECOND)"],
            env=[
                {"name": "FIRST", "value": "1"},
                {"name": "SECOND", "value": "$(FIRST)$(LATER)"},
                {"name": "LATER", "value": "x"},
            ],
        )
    )
    assert made.arguments == ("run", "--home=/home", "1$(LATER)")


def test_root_is_the_executors_and_all_else_the_containers() -> None:
    made = plan(container(env=[{"name": "BELVEDERE_ROOT", "value": ""}, {"name": "BELVEDERE_HOME", "value": "/other"}]))
    assert made.environment["BELVEDERE_ROOT"] == "/home/pods/it/main"
    assert made.environment["BELVEDERE_HOME"] == "/other"


def test_environment_from_config_maps_secrets_and_fields() -> None:
    def key(kind: str, name: str, key: str) -> dict[str, Any]:
        return {"valueFrom": {kind: {"name": name, "key": key}}}

    made = plan(
        container(
            envFrom=[{"configMapRef": {"name": "settings"}, "prefix": "P_"}],
            env=[
                {"name": "TOKEN", **key("secretKeyRef", "keys", "token")},
                {"name": "PLAIN", **key("secretKeyRef", "keys", "plain")},
                {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            ],
        )
    )
    wanted = {"P_a": "1", "P_b.yml": "two", "TOKEN": "hush", "PLAIN": "word", "POD": "it-0", "IP": "127.0.0.1"}
    assert wanted.items() <= made.environment.items()


def test_volumes_become_files_and_directories_below_the_root() -> None:
    made = plan(
        container(
            volumeMounts=[
                {"name": "settings", "mountPath": "/etc/it"},
                {"name": "keys", "mountPath": "/run/token", "subPath": "token"},
                {"name": "scratch", "mountPath": "/tmp"},
                {"name": "data", "mountPath": "/data"},
            ]
        ),
        volumes=[
            {"name": "settings", "configMap": {"name": "settings", "items": [{"key": "a", "path": "deep/a.txt"}]}},
            {"name": "keys", "secret": {"secretName": "keys"}},
            {"name": "scratch", "emptyDir": {}},
            {"name": "data", "persistentVolumeClaim": {"claimName": "mine"}},
        ],
    )
    root = Path("/home/pods/it/main")
    assert {(file.path, file.content, file.mode) for file in made.files} == {
        (root / "etc/it/deep/a.txt", b"1", 0o644),
        (root / "run/token", b"hush", 0o600),
    }
    assert {(mounted.path, mounted.target) for mounted in made.directories} == {
        (root / "tmp", Path("/home/pods/it/.volumes/scratch")),
        (root / "data", Path("/home/volumes/mine")),
    }


def test_probe_by_name_of_port() -> None:
    probe = {"httpGet": {"path": "/ready", "port": "web"}, "timeoutSeconds": 3}
    made = plan(container(ports=[{"name": "web", "containerPort": 81}], readinessProbe=probe))
    assert made.probe == Probe(port=81, path="/ready", timeout_seconds=3, period_seconds=10, initial_delay_seconds=0)


@pytest.mark.parametrize(
    ("fields", "spec", "error", "message"),
    [
        ({"command": []}, {}, InvalidInput, "command of container main is empty"),
        ({"env": [{"name": "X", "valueFrom": {"resourceFieldRef": {}}}]}, {}, InvalidInput, "env X: valueFrom"),
        ({"envFrom": [{"configMapRef": {"name": "gone"}}]}, {}, NotFound, "ConfigMap gone does not exist"),
        ({"volumeMounts": [{"name": "v", "mountPath": "/v"}]}, {}, InvalidInput, "no such volume"),
        (
            {"volumeMounts": [{"name": "v", "mountPath": "/v"}]},
            {"volumes": [{"name": "v", "nfs": {}}]},
            InvalidInput,
            "volume v is of a type",
        ),
        ({"readinessProbe": {"exec": {}}}, {}, InvalidInput, "must have httpGet or tcpSocket"),
        ({"readinessProbe": {"tcpSocket": {"port": "x"}}}, {}, InvalidInput, "port 'x' is not among its ports"),
    ],
)
def test_what_cannot_be_run_is_named(
    fields: dict[str, Any], spec: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        plan(container(**fields), **spec)


def test_references_name_every_source() -> None:
    template = {
        "spec": {
            "volumes": [{"name": "v", "configMap": {"name": "a"}}, {"name": "w", "secret": {"secretName": "b"}}],
            "initContainers": [container(envFrom=[{"secretRef": {"name": "c"}}])],
            "containers": [container(env=[{"name": "X", "valueFrom": {"configMapKeyRef": {"name": "d", "key": "k"}}}])],
        }
    }
    assert set(references(template)) == {("ConfigMap", "a"), ("Secret", "b"), ("Secret", "c"), ("ConfigMap", "d")}


def test_fingerprint_does_not_depend_on_the_order_of_keys() -> None:
    assert fingerprint_of({"a": 1, "b": 2}) == fingerprint_of({"b": 2, "a": 1}) != fingerprint_of({"a": 1, "b": 3})
