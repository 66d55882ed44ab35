"""What a person sees with kubectl on a real API server: examples, refusals, explanations, columns and scaling."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

QUICKSTART = Path(__file__).parents[2] / "deploy" / "examples" / "quickstart"
Kubectl = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def kubectl(kubeconfig: Path) -> Iterator[Kubectl]:
    """Run kubectl in a namespace of this test's own."""
    program = shutil.which("kubectl")
    if program is None:
        pytest.skip("kubectl is not installed")
    namespace = f"kubectl-{uuid.uuid4().hex[:8]}"

    def run(*arguments: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
        command = [program, "--kubeconfig", str(kubeconfig), "--namespace", namespace, *arguments]
        return subprocess.run(command, input=text, capture_output=True, text=True)

    assert run("create", "namespace", namespace).returncode == 0
    yield run
    run("delete", "namespace", namespace, "--wait=false")


def documents(name: str, kind: str) -> list[dict[str, Any]]:
    return [each for each in yaml.safe_load_all((QUICKSTART / name).read_text()) if each["kind"] == kind]


def test_every_example_is_accepted_in_its_order(kubectl: Kubectl) -> None:
    files = sorted(QUICKSTART.glob("*.yaml"))
    assert files
    for file in files:
        applied = kubectl("apply", "--server-side", "--filename", str(file))
        assert applied.returncode == 0, f"{file.name}: {applied.stderr}"


def test_every_quick_example_is_accepted(kubectl: Kubectl) -> None:
    for file in sorted((QUICKSTART / "quick").glob("*.yaml")):
        applied = kubectl("apply", "--server-side", "--filename", str(file))
        assert applied.returncode == 0, f"{file.name}: {applied.stderr}"


SERVICE, RUN, ENGINE = (
    ("04-service.yaml", "ModelService"),
    ("02-train-v1.yaml", "TrainingRun"),
    ("03-engines-v1.yaml", "Engine"),
)


@pytest.mark.parametrize(
    ("example", "path", "value", "says"),
    [
        (SERVICE, "spec.scaling.minReplicas", 9, "scaling.minReplicas must not be greater than scaling.maxReplicas"),
        (SERVICE, "spec.rollout.steps", [{"weight": 5}, {"weight": 5}], "rollout.steps: each weight must be greater"),
        (SERVICE, "spec.rollout.steps", [], "spec.rollout.steps in body should have at least 1 items"),
        (SERVICE, "spec.rolout", {}, ".spec.rolout: field not declared in schema"),
        (SERVICE, "spec.version", None, "spec.version"),
        (SERVICE, "spec.slo.availability", 1, "spec.slo.availability in body should be less than 1"),
        (SERVICE, "spec.backend", "abacus", "spec.backend: Unsupported value"),
        (SERVICE, "spec.routing.timeoutSeconds", 0, "spec.routing.timeoutSeconds in body should be greater than 0"),
        (SERVICE, "metadata.name", "x" * 64, "metadata.name must have at most 63 characters"),
        (RUN, "spec.workers", {"min": 3, "max": 2}, "workers.min must not be greater than workers.max"),
        (RUN, "spec.optimization.pairs", "many", ".spec.optimization.pairs: expected numeric"),
        (RUN, "spec.size", "giant", "spec.size: Unsupported value"),
        (SERVICE, "spec.rollout.gates", {"errors": {"maximumRatio": 1}}, "gates.errors.maximumRatio in body should be"),
        (SERVICE, "spec.pod.volumes", [{"name": "a"}], "a volume has exactly one of configMap, secret, emptyDir"),
        (SERVICE, "spec.pod.volumes", [{"name": "a", "hostPath": {"path": "/"}}], "hostPath: field not declared in"),
        (SERVICE, "spec.pod.imagePullPolicy", "Perhaps", "spec.pod.imagePullPolicy: Unsupported value"),
        (SERVICE, "spec.pod.securityContext", {"runAsUser": 0}, ".spec.pod.securityContext: field not declared"),
        (RUN, "spec.pod.volumeMounts", [{"name": "a", "mountPath": "b"}], "mountPath in body should match '^/'"),
        (RUN, "spec.queue", "Not a name", "spec.queue in body should match"),
        (ENGINE, "spec.target.precision", "fp7", "spec.target.precision: Unsupported value"),
    ],
)
def test_a_bad_object_is_refused_by_a_message_that_names_the_field(
    kubectl: Kubectl, example: tuple[str, str], path: str, value: Any, says: str
) -> None:
    manifest = copy.deepcopy(documents(*example)[0])
    *parents, last = path.split(".")
    place = manifest
    for name in parents:
        place = place.setdefault(name, {})
    place[last] = value
    refused = kubectl("apply", "--server-side", "--filename", "-", text=json.dumps(manifest))
    assert refused.returncode != 0
    assert says in refused.stderr


def test_what_cannot_be_changed_is_said_to_be_so(kubectl: Kubectl) -> None:
    (run,) = documents(*RUN)
    assert kubectl("apply", "--server-side", "--filename", "-", text=json.dumps(run)).returncode == 0
    for field, value, says in (
        ("queue", "research", "queue of a TrainingRun cannot be changed: make a new run"),
        ("size", "small", "of a TrainingRun cannot be changed: make a new run"),
    ):
        changed = {**run, "spec": {**run["spec"], field: value}}
        refused = kubectl("apply", "--server-side", "--filename", "-", text=json.dumps(changed))
        assert says in refused.stderr


def test_a_gate_is_switched_off_later(kubectl: Kubectl) -> None:
    (service,) = documents(*SERVICE)
    assert kubectl("apply", "--server-side", "--filename", "-", text=json.dumps(service)).returncode == 0
    service["spec"].setdefault("rollout", {}).setdefault("gates", {})["latency"] = {"enabled": False}
    assert kubectl("apply", "--server-side", "--filename", "-", text=json.dumps(service)).returncode == 0
    found = kubectl(
        "get", "modelservice", service["metadata"]["name"], "--output", "jsonpath={.spec.rollout.gates.latency}"
    )
    assert json.loads(found.stdout) == {"enabled": False, "maximumRatio": 1.5}


def test_everything_is_listed_in_all_namespaces(kubectl: Kubectl) -> None:
    for file in sorted(QUICKSTART.glob("0[234]*.yaml")):
        assert kubectl("apply", "--server-side", "--filename", str(file)).returncode == 0
    for kind, columns in (
        ("trainingruns", ["NAMESPACE", "NAME", "PHASE", "PAIRS", "LOSS", "VERSION", "AGE"]),
        ("engines", ["NAMESPACE", "NAME", "VERSION", "RUNTIME", "PRECISION", "READY", "REASON", "AGE"]),
        ("belvedere", None),
    ):
        header, *rows = [line for line in kubectl("get", kind, "--all-namespaces").stdout.splitlines() if line]
        assert rows
        if columns is not None:
            assert header.split() == columns


def test_fields_are_explained(kubectl: Kubectl) -> None:
    explained = kubectl("explain", "modelservice.spec.rollout").stdout
    assert "How a new version replaces the old." in explained
    assert "keepStableSeconds" in explained
    assert "percent of requests for the candidate" in kubectl("explain", "msvc.spec.rollout.steps.weight").stdout


def test_a_table_shows_what_matters(kubectl: Kubectl) -> None:
    assert kubectl("apply", "--server-side", "--filename", str(QUICKSTART / "04-service.yaml")).returncode == 0
    (service,) = documents(*SERVICE)
    status = {
        "apiVersion": service["apiVersion"],
        "kind": "ModelService",
        "metadata": {"name": service["metadata"]["name"]},
        "status": {
            "replicas": 2,
            "stable": {"version": "one"},
            "candidate": {"version": "two", "desiredWeight": 25},
            "conditions": [{"type": "Ready", "status": "True", "reason": "Routable", "message": ""}],
        },
    }
    applied = kubectl(
        "apply",
        "--server-side",
        "--subresource=status",
        "--field-manager=test",
        "--filename",
        "-",
        text=json.dumps(status),
    )
    assert applied.returncode == 0, applied.stderr
    header, row = kubectl("get", "modelservices").stdout.splitlines()
    assert header.split() == ["NAME", "READY", "STABLE", "CANDIDATE", "WEIGHT", "ROLLOUT", "REPLICAS", "AGE"]
    assert row.split()[:5] == [service["metadata"]["name"], "True", "one", "two", "25"]
    assert kubectl("wait", "--for=condition=Ready", "modelservices", "--all", "--timeout=10s").returncode == 0


def test_a_service_is_scaled_within_its_rules(kubectl: Kubectl) -> None:
    (service,) = documents(*SERVICE)
    name, most = service["metadata"]["name"], service["spec"]["scaling"]["maxReplicas"]
    assert kubectl("apply", "--server-side", "--filename", str(QUICKSTART / "04-service.yaml")).returncode == 0
    assert kubectl("scale", "modelservice", name, f"--replicas={most}").returncode == 0
    found = kubectl("get", "modelservice", name, "--output", "jsonpath={.spec.scaling.minReplicas}")
    assert found.stdout == str(most)
    refused = kubectl("scale", "modelservice", name, f"--replicas={most + 1}")
    assert "must not be greater than scaling.maxReplicas" in refused.stderr


def test_our_verbs_are_a_plugin_of_kubectl(kubeconfig: Path, kubectl: Kubectl, monkeypatch: pytest.MonkeyPatch) -> None:
    (service,) = documents(*SERVICE)
    name = service["metadata"]["name"]
    assert kubectl("apply", "--server-side", "--filename", str(QUICKSTART / "04-service.yaml")).returncode == 0
    found = json.loads(kubectl("get", "modelservice", name, "--output=json").stdout)
    # A plugin is found by its name, which must be the first word; so the cluster is named by the environment.
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    told = ("get", "modelservices", "--namespace", found["metadata"]["namespace"])
    listed = subprocess.run(["kubectl", "belvedere", *told], capture_output=True, text=True)
    assert listed.returncode == 0, listed.stderr
    assert name in listed.stdout
