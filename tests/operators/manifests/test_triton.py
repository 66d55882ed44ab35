"""The Deployment and the Service of a version that Triton serves."""

from __future__ import annotations

import json

import pytest

from belvedere_operators.manifests.pods import PodSettings
from belvedere_operators.manifests.triton import triton_deployment, triton_service
from belvedere_platform.resources.model_service import ServerOptions, WritingOptions

DIGEST = "sha256:" + "b" * 64


@pytest.fixture
def deployment(owner, spec):
    pods = PodSettings(image="belvedere:test", environment={"BELVEDERE_ARTIFACTS": "file:///artifacts"})
    return triton_deployment(owner, spec, version="v2", engine_digest=DIGEST, replicas=3, pods=pods)


def test_the_server_is_told_what_to_serve_and_where_to_listen(deployment):
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    words = container["args"]
    assert words[:5] == ["triton", "serve", DIGEST, "--model-version", "v2"]
    assert words[words.index("--http-port") + 1] == "$(BELVEDERE_PORT_HTTP)"
    told = {one["name"]: one["value"] for one in container["env"]}
    assert (told["BELVEDERE_PORT_HTTP"], told["BELVEDERE_ADDRESS"]) == ("8000", "0.0.0.0")
    assert {one["name"]: one["containerPort"] for one in container["ports"]}["grpc"] == 8001


def test_the_command_line_takes_every_argument(deployment):
    from belvedere_serving.commands.triton import serve

    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    told = {one["name"]: one["value"] for one in container["env"]}
    words = [word.replace("$(", "{").replace(")", "}").format(**told) for word in container["args"][2:]]
    context = serve.make_context("serve", words)
    assert (context.params["digest"], context.params["host"], context.params["max_batch_size"]) == (
        DIGEST,
        "0.0.0.0",
        16,
    )


def test_how_texts_are_written_reaches_the_models_that_write(owner, spec):
    from belvedere_serving.commands.triton import serve

    given = {"writing": {"maxNewTokens": 7, "cachePrecision": "int8"}}
    spec = spec.model_copy(update={"server": ServerOptions.model_validate(given)})
    made = triton_deployment(owner, spec, version="v2", engine_digest=DIGEST, replicas=1, pods=PodSettings(image="a"))
    (container,) = made["spec"]["template"]["spec"]["containers"]
    words = container["args"]
    assert json.loads(words[words.index("--writing") + 1]) == given["writing"]
    context = serve.make_context("serve", [DIGEST, "--model-version", "v2", *words[words.index("--writing") :]])
    assert WritingOptions.read(context.params["writing"]).chosen() == {"max_new_tokens": 7, "cache_precision": "int8"}


def test_on_a_gpu_a_plan_is_run_by_tritons_own_backend(owner, spec, deployment):
    target = spec.engine.target.model_copy(update={"runtime": "tensorrt", "precision": "fp16", "device": "gpu"})
    spec = spec.model_copy(update={"engine": spec.engine.model_copy(update={"target": target})})
    made = triton_deployment(owner, spec, version="v2", engine_digest=DIGEST, replicas=1, pods=PodSettings(image="a"))
    words = made["spec"]["template"]["spec"]["containers"][0]["args"]
    assert words[words.index("--backend") + 1] == "tensorrt"
    assert "--backend" not in deployment["spec"]["template"]["spec"]["containers"][0]["args"]


def test_several_engines_in_a_replica_share_its_cores(owner, spec):
    resources = spec.resources.model_copy(update={"cpu": 7})
    spec = spec.model_copy(update={"server": ServerOptions(instances=3), "resources": resources})
    made = triton_deployment(owner, spec, version="v2", engine_digest=DIGEST, replicas=1, pods=PodSettings(image="a"))
    words = made["spec"]["template"]["spec"]["containers"][0]["args"]
    assert [words[words.index(name) + 1] for name in ("--instances", "--threads")] == ["3", "2"]


def test_the_service_selects_the_pods_and_lends_its_labels_to_the_slices(owner, deployment):
    service = triton_service(owner, "v2")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    assert deployment["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert service["metadata"]["labels"]["belvedere.dev/version"] == "v2"
    assert [port["name"] for port in service["spec"]["ports"]] == ["http", "grpc"]


def test_a_replica_has_time_to_drain(deployment):
    pod = deployment["spec"]["template"]["spec"]
    words = pod["containers"][0]["args"]
    assert pod["terminationGracePeriodSeconds"] > float(words[words.index("--drain-seconds") + 1]) + 30
