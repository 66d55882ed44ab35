"""The pure parts of the Ray executors: ids, submissions, the one Serve config, and statuses."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from belvedere_operators.executors.ray_dashboard import RayDashboard
from belvedere_operators.executors.rayjob import status_of, submission, submission_id
from belvedere_operators.executors.rayservice import (
    ServeSettings,
    application_of,
    covers,
    deployed_applications,
    serve_config,
    service_status,
)
from belvedere_platform.errors import InvalidInput
from belvedere_platform.store import Manifest

SETTINGS = ServeSettings(http_port=8000, grpc_port=9000)


def ray_job(*, status: dict[str, Any] | None = None, **spec: Any) -> Manifest:
    return {
        "metadata": {"namespace": "default", "name": "it", "uid": "12345678-9abc", "generation": 3},
        "spec": {"entrypoint": "run", **spec},
        "status": status or {},
    }


def ray_service(config: Any) -> Manifest:
    text = config if isinstance(config, str) else json.dumps(config)
    return {"metadata": {"namespace": "n", "name": "s", "generation": 2}, "spec": {"serveConfigV2": text}}


@pytest.mark.parametrize(
    ("last", "state", "suspend", "expected"),
    [
        ("", "", False, "default-it-12345678"),
        ("default-it-12345678", "Running", False, "default-it-12345678"),
        ("default-it-12345678", "Suspended", True, "default-it-12345678"),
        ("default-it-12345678", "Suspended", False, "default-it-12345678-2"),
        ("default-it-12345678-2", "Running", False, "default-it-12345678-2"),
        ("default-it-12345678-2", "Suspended", False, "default-it-12345678-3"),
        ("default-it-other", "Running", False, "default-it-12345678"),
    ],
)
def test_submission_id_is_the_same_until_the_next_resumption(
    last: str, state: str, suspend: bool, expected: str
) -> None:
    manifest = ray_job(status={"jobId": last, "jobDeploymentStatus": state}, suspend=suspend)
    assert submission_id(manifest) == expected


def test_submission_reads_the_runtime_environment() -> None:
    entrypoint, fields = submission(ray_job(runtimeEnvYAML="env_vars: {A: b}", entrypointNumCpus=0.5))
    assert entrypoint == "run"
    assert fields == {"runtime_env": {"env_vars": {"A": "b"}}, "metadata": {}, "entrypoint_num_cpus": 0.5}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"entrypoint": ""}, "spec.entrypoint is empty"),
        ({"backoffLimit": 2}, "spec.backoffLimit is 2"),
        ({"runtimeEnvYAML": "["}, "spec.runtimeEnvYAML is not YAML"),
        ({"runtimeEnvYAML": "word"}, "spec.runtimeEnvYAML must be a mapping"),
        ({"entrypointNumCpus": "many"}, "spec.entrypointNumCpus is 'many'"),
        ({"entrypointResources": "{"}, "spec.entrypointResources is not JSON"),
    ],
)
def test_submission_that_cannot_be_made_names_the_field(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        submission(ray_job(**spec))


@pytest.mark.parametrize(
    ("state", "deployment"),
    [
        ("PENDING", "Running"),
        ("RUNNING", "Running"),
        ("SUCCEEDED", "Complete"),
        ("STOPPED", "Complete"),
        ("FAILED", "Failed"),
    ],
)
def test_job_status_is_kuberays(state: str, deployment: str) -> None:
    status = status_of(ray_job(), {"status": state, "start_time": 1000, "message": "said"})
    assert (status["jobStatus"], status["jobDeploymentStatus"], status["message"]) == (state, deployment, "said")
    assert status["startTime"] == "1970-01-01T00:00:01Z"


def test_application_gets_the_name_and_prefix_of_its_ray_service() -> None:
    made = application_of(ray_service({"applications": [{"name": "x", "route_prefix": "/", "import_path": "a:b"}]}))
    assert made == {"name": "n.s", "route_prefix": "/n.s", "import_path": "a:b"}


@pytest.mark.parametrize(
    "config",
    ["", "[", "applications: []", {"applications": [{}]}, {"applications": [{}, {}]}, {"applications": [3]},
     {"applications": ["import_path"]}],
)  # fmt: skip
def test_serve_config_that_is_wrong_is_refused(config: Any) -> None:
    with pytest.raises(InvalidInput, match=r"spec\.serveConfigV2"):
        application_of(ray_service(config))


def test_one_wrong_config_keeps_what_is_deployed_and_changes_no_other() -> None:
    deployed = {"a": {"name": "a", "import_path": "old"}, "gone": {"name": "gone"}}
    config = serve_config(SETTINGS, {"a": None, "b": {"name": "b"}, "c": None}, deployed)
    assert config["applications"] == [deployed["a"], {"name": "b"}]


def test_options_of_the_instance_never_depend_on_the_applications() -> None:
    one, other = serve_config(SETTINGS, {}, {}), serve_config(SETTINGS, {"b": {"name": "b"}}, {})
    assert {k: v for k, v in one.items() if k != "applications"} == {
        k: v for k, v in other.items() if k != "applications"
    }


@pytest.mark.parametrize(
    ("deployed", "wanted", "expected"),
    [
        ({"a": 1, "b": 2}, {"a": 1}, True),
        ({"a": 1}, {"a": 1, "b": 2}, False),
        ({"a": [{"n": 1, "more": 0}]}, {"a": [{"n": 1}]}, True),
        ({"a": [1, 2]}, {"a": [1]}, False),
        ({"a": 1.0}, {"a": 1}, True),
        ({"a": None}, {"a": {}}, False),
    ],
)
def test_deployed_config_covers_the_wanted_one(deployed: Any, wanted: Any, expected: bool) -> None:
    assert covers(deployed, wanted) is expected


def test_application_that_is_being_deleted_is_not_deployed() -> None:
    config = {"name": "a"}
    details = {
        "applications": {
            "a": {"status": "RUNNING", "deployed_app_config": config},
            "b": {"status": "DELETING", "deployed_app_config": {}},
            "c": {"status": "RUNNING", "deployed_app_config": None},
        }
    }
    assert deployed_applications(details) == {"a": config}


@pytest.mark.parametrize(
    ("application", "serving", "endpoints", "reason"),
    [
        (None, "", 0, "ZeroServeEndpoints"),
        ("DEPLOYING", "", 1, "NonZeroServeEndpoints"),
        ("RUNNING", "Running", 1, "NonZeroServeEndpoints"),
        ("DEPLOY_FAILED", "", 0, "ZeroServeEndpoints"),
    ],
)
def test_service_status_is_kuberays(application: str | None, serving: str, endpoints: int, reason: str) -> None:
    replicas = [{"state": "RUNNING"}] * endpoints + [{"state": "STARTING"}]
    details: dict[str, Any] = {"applications": {}}
    if application:
        deployments = {"V2Server": {"status": "HEALTHY", "message": "", "replicas": replicas}}
        details["applications"]["n.s"] = {"status": application, "message": "why", "deployments": deployments}
    manifest = {"apiVersion": "ray.io/v1", "kind": "RayService", **ray_service("")}
    status = service_status(
        manifest,
        details,
        ray=RayDashboard(address="127.0.0.1:8265", http=httpx.AsyncClient()),
        problem="",
        now=datetime(2026, 1, 1, tzinfo=UTC),
    )
    assert (status["serviceStatus"], status["numServeEndpoints"]) == (serving, endpoints)
    ready = next(entry for entry in status["conditions"] if entry["type"] == "Ready")
    assert (ready["status"] == "True", ready["reason"]) == (bool(serving), reason)
    assert "n.s" in status["activeServiceStatus"]["applicationStatuses"]
