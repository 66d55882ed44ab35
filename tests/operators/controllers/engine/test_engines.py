"""Engines over the real stores, and the gates as a table."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from belvedere_operators.controllers.engine.controller import EngineReconciler
from belvedere_operators.manifests.enginejob import engine_job_name, engine_tag
from belvedere_operators.runtime import After, Key
from belvedere_platform.resources.engine import EngineSpec, ParityGate
from belvedere_platform.store.kinds import ENGINE, JOB, MODEL_VERSION

KEY = Key("default", "v1-onnxruntime-int8")
SPEC: dict[str, Any] = {
    "modelVersion": "v1",
    "target": {"precision": "int8"},
    "parity": {"cosineMinimum": 0.95, "top1AgreementMinimum": 0.9},
}
GOOD = {"cosineMin": 0.97, "cosineMean": 0.99, "top1Agreement": 0.93, "samples": 256}
FAST = {"p50Milliseconds": 2.0, "p95Milliseconds": 3.0, "torchP50Milliseconds": 6.0, "batch": 1}


class Shop:
    """One Engine on the bench, with the model it is built from."""

    def __init__(self, bench: Any) -> None:
        self.bench = bench
        self.reconciler = EngineReconciler(bench.context)
        self.model = bench.artifacts.push("model", {"model.safetensors": b"w"}, config={}).digest
        self.tag = f"engines/{self.model[7:19]}-onnxruntime-int8-{bench.context.settings.toolchain_digest}"

    async def add_version(self, *, ready: bool = True) -> None:
        spec = {"model": "clip", "digest": self.model, "evaluation": {"passed": True}}
        await self.bench.apply("ModelVersion", "v1", spec)
        if ready:
            condition = {"type": "Ready", "status": "True", "reason": "Verified"}
            await self.bench.set_status(MODEL_VERSION, "v1", conditions=[condition])

    async def apply(self, **changes: Any) -> None:
        await self.bench.apply("Engine", KEY.name, {**SPEC, **changes})

    def build(self, **changes: Any) -> str:
        config = {
            "modelDigest": self.model,
            "target": {"runtime": "onnxruntime", "precision": "int8", "device": "cpu"},
            "parity": {"embed_text": GOOD, "embed_image": GOOD},
            "latency": {"embed_text": FAST, "embed_image": FAST},
            "toolchain": {"onnxruntime": "1.0"},
            "device": "cpu avx2",
            **changes,
        }
        config = {key: value for key, value in config.items() if value is not None}
        return str(self.bench.artifacts.push("engine", {"embed_text.onnx": b"x"}, config=config, tag=self.tag).digest)

    def job(self, **gate: float) -> str:
        """Return the name of the Job for a gate."""
        return engine_job_name(KEY.name, ParityGate.model_validate({**SPEC["parity"], **gate}))

    async def reconcile(self) -> After | None:
        return await self.reconciler.reconcile(KEY)

    async def ready(self) -> tuple[str, str, str]:
        return tuple(await self.bench.condition(ENGINE, KEY.name, "Ready"))  # type: ignore[return-value]


@pytest.fixture
def shop(bench: Any) -> Shop:
    return Shop(bench)


async def test_an_engine_is_built_and_judged(shop: Shop) -> None:
    await shop.add_version()
    await shop.apply()
    await shop.reconcile()
    assert (await shop.ready())[1] == "Building"
    job = await shop.bench.get(JOB, shop.job())
    container = job["spec"]["template"]["spec"]["containers"][0]
    assert container["command"] == ["belvedere"]
    assert container["args"] == [
        "engine", "build", "--model-digest", shop.model, "--runtime", "onnxruntime", "--precision", "int8",
        "--parity-cosine-minimum", "0.95", "--parity-top1-minimum", "0.9", "--tag", shop.tag,
    ]  # fmt: skip
    assert {"name": "BELVEDERE_ARTIFACTS", "value": shop.bench.artifacts.url} in container["env"]
    digest = shop.build()
    await shop.bench.set_status(JOB, shop.job(), conditions=[{"type": "Complete", "status": "True"}])
    await shop.reconcile()
    assert (await shop.ready())[:2] == ("True", "Built")
    status = await shop.bench.status(ENGINE, KEY.name)
    assert status["digest"] == digest
    assert status["job"] == shop.job()
    assert status["parity"]["embed_text"]["cosineMin"] == 0.97
    assert status["latency"]["embed_image"]["torchP50Milliseconds"] == 6.0
    assert (status["toolchain"], status["device"], status["sizeBytes"]) == ({"onnxruntime": "1.0"}, "cpu avx2", 1)
    await shop.reconcile()
    assert await shop.bench.events() == [("Normal", "Building", 1), ("Normal", "Built", 1)]


async def test_an_engine_of_the_same_key_is_reused(shop: Shop) -> None:
    digest = shop.build()
    await shop.add_version()
    await shop.apply()
    await shop.reconcile()
    assert (await shop.ready())[:2] == ("True", "Reused")
    assert await shop.bench.get(JOB, shop.job()) is None
    assert (await shop.bench.status(ENGINE, KEY.name))["digest"] == digest


@pytest.mark.parametrize(
    ("changes", "pod", "refused"),
    [
        (
            {"target": {"runtime": "litert"}},
            {},
            "spec.target.runtime is litert, and what builds engines here lacks ai-edge-litert",
        ),
        (
            {"target": {"runtime": "tensorrt", "device": "gpu"}},
            {},
            "what builds engines here lacks tensorrt: install it there",
        ),
        ({"target": {"runtime": "openvino"}}, {}, None),
        ({"target": {"runtime": "litert"}}, {"image": "mine:1"}, None),
    ],
)
async def test_what_the_toolchain_cannot_build_is_refused_without_a_job(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], pod: dict[str, str], refused: str | None
) -> None:
    toolchain = {"torch": "2", "onnxruntime": "1", "openvino": "3"}
    context = replace(shop.bench.context, settings=replace(shop.bench.context.settings, toolchain=toolchain))
    shop.reconciler = EngineReconciler(context)
    await shop.add_version()
    await shop.apply(**changes, pod=pod)
    await shop.reconcile()
    _, reason, message = await shop.ready()
    assert reason == ("BuildFailed" if refused else "Building")
    assert (refused or "the build is submitted") in message
    assert (await shop.bench.get(JOB, shop.job()) is None) is (refused is not None)


def test_an_engine_for_other_nodes_or_of_another_image_is_another() -> None:
    def tag(target: dict[str, str] | None = None, **pod: Any) -> str:
        spec = EngineSpec.model_validate({"modelVersion": "v1", "target": target or {}, "pod": pod})
        return engine_tag(spec, model_digest="sha256:" + "a" * 64, toolchain_digest="t" * 8)

    assert tag() == tag(labels={"team": "a"}) == f"engines/{'a' * 12}-onnxruntime-fp32-{'t' * 8}"
    gpu = {"runtime": "tensorrt", "device": "gpu"}
    places = [
        *(tag(gpu, nodeSelector={"nvidia.com/gpu.product": product}) for product in ("L4", "H100")),
        *(tag(gpu), tag(), tag(image="mine:1"), tag({"runtime": "auto"}), tag({"runtime": "auto", "device": "gpu"})),
    ]
    assert len(set(places)) == len(places)


async def test_another_toolchain_builds_anew(shop: Shop) -> None:
    shop.tag = shop.tag[:-8] + "00000000"
    shop.build()
    await shop.add_version()
    await shop.apply()
    await shop.reconcile()
    assert (await shop.ready())[1] == "Building"


def upgraded(shop: Shop) -> None:
    """Have another operator look, whose libraries are newer."""
    settings = replace(shop.bench.context.settings, toolchain={"onnxruntime": "2.0"})
    assert settings.toolchain_digest != shop.bench.context.settings.toolchain_digest
    shop.reconciler = EngineReconciler(replace(shop.bench.context, settings=settings))


@pytest.mark.parametrize("by_job", [True, False])
async def test_an_engine_that_is_ready_stands_when_the_operator_is_upgraded(shop: Shop, by_job: bool) -> None:
    await shop.add_version()
    await shop.apply()
    if by_job:
        await shop.reconcile()
        await shop.bench.set_status(JOB, shop.job(), conditions=[{"type": "Complete", "status": "True"}])
    digest = shop.build()
    await shop.reconcile()
    before, said = await shop.bench.get(ENGINE, KEY.name), await shop.bench.events()
    assert before["status"]["digest"] == digest
    upgraded(shop)
    await shop.reconcile()
    assert await shop.bench.get(ENGINE, KEY.name) == before
    assert await shop.bench.events() == said
    await shop.apply(parity={"cosineMinimum": 0.9, "top1AgreementMinimum": 0.9})
    await shop.reconcile()
    assert (await shop.ready())[:2] == ("False", "Building")


async def test_an_engine_whose_artifact_has_gone_does_not_stand(shop: Shop) -> None:
    digest = shop.build()
    await shop.add_version()
    await shop.apply()
    await shop.reconcile()
    upgraded(shop)
    shop.bench.artifacts.collect_garbage([shop.model])
    assert digest not in {one.digest for one in shop.bench.artifacts.list()}
    await shop.reconcile()
    assert (await shop.ready())[:2] == ("False", "Building")


@pytest.mark.parametrize(
    ("built", "spec", "reason", "figures"),
    [
        (
            {"parity": {"embed_text": {**GOOD, "cosineMin": 0.41}, "embed_image": GOOD}},
            {},
            "ParityFailed",
            "embed_text: smallest cosine 0.4100, spec.parity.cosineMinimum is 0.95 (on 256 held-out inputs)",
        ),
        (
            {"parity": {"embed_text": GOOD, "embed_image": {**GOOD, "top1Agreement": 0.5}}},
            {},
            "ParityFailed",
            "embed_image: top-1 agreement 0.5000, spec.parity.top1AgreementMinimum is 0.9",
        ),
        ({"parity": {}}, {}, "ParityFailed", "measured no parity"),
        ({}, {"parity": {"cosineMinimum": 0.98}}, "ParityFailed", "embed_image: smallest cosine 0.9700"),
        (
            {},
            {"latencyBudgetMilliseconds": 1.5},
            "LatencyBudgetExceeded",
            "embed_image: p50 2.00 ms; embed_text: p50 2.00 ms; spec.latencyBudgetMilliseconds is 1.5",
        ),
        ({"latency": {}}, {"latencyBudgetMilliseconds": 1.5}, "LatencyBudgetExceeded", "measured no latency"),
        ({"parity": None}, {}, "BuildFailed", "has no parity"),
        ({"latency": {"embed_text": {}}}, {}, "BuildFailed", "is wrong at p50Milliseconds"),
    ],
)
async def test_what_an_engine_is_refused_for(
    shop: Shop, built: dict[str, Any], spec: dict[str, Any], reason: str, figures: str
) -> None:
    shop.build(**built)
    await shop.add_version()
    await shop.apply(**spec)
    await shop.reconcile()
    status, found, message = await shop.ready()
    assert (status, found) == ("False", reason)
    assert figures in message
    assert (await shop.bench.store.list(JOB, "default")).items == []


async def test_a_gate_that_is_loosened_lets_the_engine_in(shop: Shop) -> None:
    shop.build()
    await shop.add_version()
    await shop.apply(parity={"cosineMinimum": 0.99})
    await shop.reconcile()
    assert (await shop.ready())[1] == "ParityFailed"
    await shop.apply()
    await shop.reconcile()
    assert (await shop.ready())[0] == "True"


async def test_a_failed_build_is_said_and_not_repeated(shop: Shop) -> None:
    await shop.add_version()
    await shop.apply()
    await shop.reconcile()
    failed = {"type": "Failed", "status": "True", "message": "exit code 1"}
    await shop.bench.set_status(JOB, shop.job(), conditions=[failed])
    assert await shop.reconcile() is None
    assert (await shop.ready())[1] == "BuildFailed"
    assert "exit code 1; delete the Job to build again" in (await shop.ready())[2]
    await shop.bench.store.delete(JOB, shop.job(), "default")
    await shop.reconcile()
    assert (await shop.ready())[1] == "Building"


async def test_a_version_is_waited_for(shop: Shop) -> None:
    await shop.apply()
    assert await shop.reconcile() == After(10.0)
    assert (await shop.bench.condition(ENGINE, KEY.name, "Accepted"))[:2] == ("False", "ModelVersionNotFound")
    await shop.add_version(ready=False)
    await shop.reconcile()
    assert (await shop.bench.condition(ENGINE, KEY.name, "Accepted"))[0] == "True"
    assert await shop.ready() == ("False", "Pending", "ModelVersion v1 is not Ready")
    assert await shop.bench.get(JOB, shop.job()) is None


async def test_an_engine_that_is_gone_is_left_alone(shop: Shop) -> None:
    assert await shop.reconcile() is None


async def test_an_engine_that_is_being_deleted_gets_no_new_job(shop: Shop) -> None:
    await shop.add_version()
    await shop.bench.apply("Engine", KEY.name, SPEC, finalizers=["foregroundDeletion"])
    await shop.bench.store.delete(ENGINE, KEY.name, KEY.namespace)
    assert await shop.reconcile() is None
    assert await shop.bench.get(JOB, shop.job()) is None


async def test_another_gate_is_tried_once(shop: Shop) -> None:
    """Among several ways to int8 the gate has a word, so an engine that misses a new gate may be built another way."""
    shop.build(parityGate=SPEC["parity"])
    await shop.add_version()
    await shop.apply(parity={"cosineMinimum": 0.99, "top1AgreementMinimum": 0.9})
    await shop.reconcile()
    assert (await shop.ready())[1] == "Building"
    strict = shop.job(cosineMinimum=0.99)
    assert strict != shop.job()
    assert await shop.bench.get(JOB, strict) is not None
    shop.build(parityGate={"cosineMinimum": 0.99, "top1AgreementMinimum": 0.9})
    await shop.bench.set_status(JOB, strict, conditions=[{"type": "Complete", "status": "True"}])
    await shop.reconcile()
    assert (await shop.ready())[1] == "ParityFailed"
    # Back at the old gate nothing is built: the engine holds it.
    await shop.apply()
    await shop.reconcile()
    assert (await shop.ready())[0] == "True"
