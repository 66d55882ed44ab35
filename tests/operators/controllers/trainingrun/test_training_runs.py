"""TrainingRuns over the real store: from a data set to a version, through failures."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
import yaml

from belvedere_operators.controllers.trainingrun.controller import TrainingRunReconciler
from belvedere_operators.controllers.trainingrun.progress import progress_of, progress_query
from belvedere_operators.runtime import After, Key
from belvedere_platform.store.kinds import MODEL_VERSION, RAY_JOB, TRAINING_RUN

KEY = Key("default", "clip-v1")
SPEC: dict[str, Any] = {
    "model": "clip",
    "data": {"dataset": "emoji"},
    "optimization": {"pairs": 1000},
    "evaluation": {"gates": [{"metric": "heldout_style_en_r1", "minimum": 0.4}]},
    "workers": {"min": 1, "max": 2},
}


class Run:
    """One TrainingRun on the bench."""

    def __init__(self, bench: Any) -> None:
        self.bench = bench
        self.reconciler = TrainingRunReconciler(bench.context)

    async def start(self, **changes: Any) -> None:
        await self.bench.apply("TrainingRun", KEY.name, {**SPEC, **changes})

    async def reconcile(self) -> After | None:
        return await self.reconciler.reconcile(KEY)

    def add_data(self) -> str:
        return str(
            self.bench.artifacts.push("dataset", {"manifest.json": b"{}"}, config={}, tag="datasets/emoji").digest
        )

    def leave_model(self, attempt: int, **metrics: float) -> str:
        config = {"model": "clip", "metrics": metrics, "lineage": {"configDigest": "sha256:" + "c" * 64}}
        pushed = self.bench.artifacts.push(
            "model", {"model.safetensors": str(metrics).encode()}, config=config, tag=f"runs/default/clip-v1/{attempt}"
        )
        return str(pushed.digest)

    async def job_is(self, attempt: int, job_status: str, **more: Any) -> None:
        deployment = {"RUNNING": "Running", "SUCCEEDED": "Complete", "FAILED": "Failed"}[job_status]
        await self.bench.set_status(
            RAY_JOB, f"clip-v1-{attempt}", jobStatus=job_status, jobDeploymentStatus=deployment, **more
        )

    async def jobs(self) -> list[str]:
        listing = await self.bench.store.list(RAY_JOB, "default")
        return [one["metadata"]["name"] for one in listing.items]

    async def status(self) -> dict[str, Any]:
        return dict(await self.bench.status(TRAINING_RUN, KEY.name))

    async def ready(self) -> tuple[str, str, str]:
        return tuple(await self.bench.condition(TRAINING_RUN, KEY.name, "Ready"))  # type: ignore[return-value]

    async def accepted(self) -> tuple[str, str, str]:
        return tuple(await self.bench.condition(TRAINING_RUN, KEY.name, "Accepted"))  # type: ignore[return-value]


@pytest.fixture
def run(bench: Any) -> Run:
    return Run(bench)


async def test_a_run_becomes_a_version(run: Run) -> None:
    data = run.add_data()
    await run.start()
    assert await run.reconcile() == After(2.0)
    job = await run.bench.get(RAY_JOB, "clip-v1-1")
    assert job["spec"]["entrypoint"] == "belvedere train --config-env BELVEDERE_TRAINING_CONFIG"
    assert job["spec"]["submissionMode"] == "HTTPMode"
    assert [owner["kind"] for owner in job["metadata"]["ownerReferences"]] == ["TrainingRun"]
    variables = yaml.safe_load(job["spec"]["runtimeEnvYAML"])["env_vars"]
    config = json.loads(variables["BELVEDERE_TRAINING_CONFIG"])
    assert variables["BELVEDERE_ARTIFACTS"] == run.bench.artifacts.url
    assert variables["BELVEDERE_INSTANCE"] == "bench"
    assert config["dataDigest"] == data
    assert config["run"] | {"uid": ""} == {"namespace": "default", "name": "clip-v1", "uid": "", "attempt": 1}
    assert config["optimization"]["pairs"] == 1000
    assert (await run.status())["phase"] == "Pending"

    await run.job_is(1, "RUNNING")
    await run.reconcile()
    assert (await run.status())["phase"] == "Running"
    assert await run.ready() == ("False", "Training", "attempt 1 is training")

    digest = run.leave_model(1, heldout_style_en_r1=0.5)
    await run.job_is(1, "SUCCEEDED")
    assert await run.reconcile() is None
    status = await run.status()
    assert (status["phase"], status["modelVersion"], status["digest"]) == ("Succeeded", "clip-v1", digest)
    assert status["gates"] == [{"metric": "heldout_style_en_r1", "minimum": 0.4, "value": 0.5, "passed": True}]
    assert status["startTime"]
    assert status["completionTime"]
    version = await run.bench.get(MODEL_VERSION, "clip-v1")
    assert version["spec"]["digest"] == digest
    assert version["spec"]["lineage"] == {
        "trainingRun": "clip-v1",
        "dataDigest": data,
        "configDigest": "sha256:" + "c" * 64,
    }
    assert version["spec"]["evaluation"] == {"passed": True}
    assert "ownerReferences" not in version["metadata"]
    assert run.bench.artifacts.resolve("models/clip-v1").digest == digest
    assert await run.bench.events() == [("Normal", "AttemptStarted", 1), ("Normal", "Published", 1)]


async def test_a_run_says_once_that_it_waits_whether_its_job_is_there_yet_or_not(run: Run) -> None:
    run.add_data()
    await run.start()
    await run.reconcile()
    before = await run.bench.get(TRAINING_RUN, "clip-v1")
    assert await run.ready() == ("False", "Pending", "attempt 1 waits: not started yet")
    await run.bench.clock.advance(2)
    await run.reconcile()
    assert await run.bench.get(TRAINING_RUN, "clip-v1") == before


async def test_reconciling_again_changes_nothing(run: Run) -> None:
    run.add_data()
    await run.start()
    for status in ("RUNNING", "SUCCEEDED"):
        await run.reconcile()
        await run.job_is(1, status)
    run.leave_model(1, heldout_style_en_r1=0.5)
    await run.reconcile()
    before = await run.bench.store.get(TRAINING_RUN, "clip-v1", "default")
    await run.bench.clock.advance(3600)
    await run.reconcile()
    assert await run.bench.store.get(TRAINING_RUN, "clip-v1", "default") == before
    await run.bench.store.delete(RAY_JOB, "clip-v1-1", "default")
    await run.reconcile()
    assert await run.jobs() == []
    assert (await run.status())["phase"] == "Succeeded"


async def test_what_is_missing_is_waited_for(run: Run) -> None:
    await run.start(initializeFrom={"modelVersion": "clip-v0"})
    assert await run.reconcile() == After(10.0)
    status, reason, message = await run.accepted()
    assert (status, reason) == ("False", "DatasetNotFound")
    assert "spec.data.dataset is emoji, and the artifact store has no datasets/emoji" in message
    assert await run.jobs() == []
    run.add_data()
    await run.reconcile()
    assert (await run.accepted())[1] == "ParentNotFound"
    digest = "sha256:" + "0" * 64
    await run.bench.apply(
        "ModelVersion", "clip-v0", {"model": "clip", "digest": digest, "evaluation": {"passed": True}}
    )
    await run.reconcile()
    assert (await run.accepted())[1] == "ParentNotReady"
    await run.bench.set_status(
        MODEL_VERSION, "clip-v0", conditions=[{"type": "Ready", "status": "True", "reason": "Verified"}]
    )
    await run.reconcile()
    assert await run.jobs() == ["clip-v1-1"]
    job = await run.bench.get(RAY_JOB, "clip-v1-1")
    variables = yaml.safe_load(job["spec"]["runtimeEnvYAML"])["env_vars"]
    assert json.loads(variables["BELVEDERE_TRAINING_CONFIG"])["parentDigest"] == digest


async def test_a_failure_is_retried_from_the_checkpoint_until_the_limit(run: Run) -> None:
    data = run.add_data()
    await run.start(resume={"maxFailures": 1})
    await run.reconcile()
    await run.job_is(1, "RUNNING")
    await run.reconcile()
    await run.job_is(1, "FAILED", message="worker died", endTime="2026-01-01T00:00:00Z")
    run.bench.artifacts.push("dataset", {"manifest.json": b"newer"}, config={}, tag="datasets/emoji")
    after = await run.reconcile()
    assert after is not None
    assert await run.jobs() == ["clip-v1-1"]
    assert "resumes from its checkpoint in 5 s: worker died" in (await run.ready())[2]
    await run.bench.clock.advance(after.seconds)
    await run.reconcile()
    assert await run.jobs() == ["clip-v1-1", "clip-v1-2"]
    job = await run.bench.get(RAY_JOB, "clip-v1-2")
    config = json.loads(yaml.safe_load(job["spec"]["runtimeEnvYAML"])["env_vars"]["BELVEDERE_TRAINING_CONFIG"])
    # The second attempt trains on the data of the first, although the name has moved on.
    assert (config["run"]["attempt"], config["dataDigest"]) == (2, data)
    await run.job_is(2, "FAILED", message="worker died again")
    assert await run.reconcile() is None
    assert await run.ready() == (
        "False",
        "JobFailed",
        "attempt 2 failed and spec.resume allows 1 failures: worker died again",
    )
    assert (await run.status())["phase"] == "Failed"
    assert ("Warning", "AttemptFailed", 1) in await run.bench.events()
    await run.start(resume={"maxFailures": 2})
    await run.reconcile()
    assert await run.jobs() == ["clip-v1-1", "clip-v1-2", "clip-v1-3"]


async def test_a_missed_gate_makes_no_version(run: Run) -> None:
    run.add_data()
    await run.start()
    await run.reconcile()
    run.leave_model(1, heldout_style_en_r1=0.39)
    await run.job_is(1, "SUCCEEDED")
    await run.reconcile()
    assert await run.ready() == ("False", "GateFailed", "heldout_style_en_r1 is 0.39, its minimum is 0.4")
    assert await run.bench.get(MODEL_VERSION, "clip-v1") is None
    await run.start(evaluation={"gates": [{"metric": "accuracy", "minimum": 0.4}]})
    await run.reconcile()
    assert "accuracy was not measured; the metrics are heldout_style_en_r1" in (await run.ready())[2]


async def test_a_name_that_is_taken_is_refused(run: Run) -> None:
    run.add_data()
    taken = {"model": "clip", "digest": "sha256:" + "9" * 64, "evaluation": {"passed": True}}
    await run.bench.apply("ModelVersion", "clip-v1", taken)
    await run.start()
    await run.reconcile()
    status, reason, message = await run.accepted()
    assert (status, reason) == ("False", "VersionExists")
    assert "choose another name" in message
    assert await run.jobs() == []


async def test_a_name_that_is_taken_meanwhile_is_refused(run: Run) -> None:
    run.add_data()
    await run.start()
    await run.reconcile()
    run.leave_model(1, heldout_style_en_r1=0.5)
    await run.job_is(1, "SUCCEEDED")
    taken = {"model": "clip", "digest": "sha256:" + "9" * 64, "evaluation": {"passed": True}}
    await run.bench.apply("ModelVersion", "clip-v1", taken)
    await run.reconcile()
    assert (await run.accepted())[:2] == ("False", "VersionExists")
    assert (await run.status())["phase"] == "Failed"
    assert (await run.bench.get(MODEL_VERSION, "clip-v1"))["spec"]["digest"] == taken["digest"]


async def test_a_job_that_leaves_nothing_has_failed(run: Run) -> None:
    run.add_data()
    await run.start(resume={"policy": "Never"})
    await run.reconcile()
    await run.job_is(1, "SUCCEEDED")
    await run.reconcile()
    assert "left no artifact tagged runs/default/clip-v1/1" in (await run.ready())[2]
    assert (await run.status())["phase"] == "Failed"


async def test_suspend_reaches_the_job(run: Run) -> None:
    run.add_data()
    await run.start(suspend=True)
    await run.reconcile()
    assert (await run.status())["phase"] == "Suspended"
    assert (await run.bench.get(RAY_JOB, "clip-v1-1"))["spec"]["suspend"] is True
    await run.bench.set_status(RAY_JOB, "clip-v1-1", jobStatus="STOPPED", jobDeploymentStatus="Suspended")
    await run.reconcile()
    assert (await run.status())["phase"] == "Suspended"
    await run.start(suspend=False)
    await run.reconcile()
    assert (await run.bench.get(RAY_JOB, "clip-v1-1"))["spec"]["suspend"] is False
    await run.reconcile()
    assert (await run.status())["phase"] == "Pending"
    assert await run.jobs() == ["clip-v1-1"]


def series(gauge: str, value: float, worker: str = "w1", **labels: str) -> dict[str, Any]:
    name = f"ray_belvedere_training_{gauge}"
    of_run = {"namespace": KEY.namespace, "run": KEY.name}
    return {"metric": {"__name__": name, "WorkerId": worker, **of_run, **labels}, "value": [0, str(value)]}


async def test_progress_comes_from_prometheus(run: Run) -> None:
    vector = [
        series("pairs", 640),
        series("loss", 2.5),
        series("images_per_second", 300),
        series("recall", 0.25, metric="r1"),
        series("pairs", 9_000, run="another"),
    ]

    def answer(request: httpx.Request) -> httpx.Response:
        assert request.url.params["query"] == progress_query()
        return httpx.Response(200, json={"data": {"result": vector}})

    run.bench.answer = answer
    run.add_data()
    await run.start()
    await run.reconcile()
    await run.job_is(1, "RUNNING")
    await run.bench.clock.advance(2)
    await run.reconcile()
    expected = {"pairs": 640, "loss": 2.5, "imagesPerSecond": 300.0, "recall": {"r1": 0.25}}
    assert (await run.status())["progress"] == expected
    run.bench.answer = run.bench.refuse
    await run.bench.clock.advance(2)
    await run.reconcile()
    # What was known stays, and the run says that it cannot be watched; training goes on.
    assert (await run.status())["progress"] == expected
    status, reason, message = await run.bench.condition(TRAINING_RUN, "clip-v1", "ProgressKnown")
    assert (status, reason) == ("Unknown", "MetricsUnavailable")
    assert "Prometheus at http://prometheus does not answer" in message
    assert (await run.status())["phase"] == "Running"


def test_the_attempt_furthest_on_counts() -> None:
    progress = progress_of(
        [series("pairs", 10, "old"), series("loss", 9, "old"), series("pairs", 20, "new"), series("loss", 1, "new")]
    )
    assert progress is not None
    assert (progress.pairs, progress.loss) == (20, 1)
    assert progress_of([]) is None
    assert progress_of([series("loss", float("nan"))]) is None


async def test_a_run_that_is_gone_is_left_alone(run: Run) -> None:
    assert await run.reconcile() is None


async def test_a_run_that_is_being_deleted_gets_no_new_attempt(run: Run) -> None:
    run.add_data()
    await run.bench.apply("TrainingRun", KEY.name, SPEC, finalizers=["foregroundDeletion"])
    await run.bench.store.delete(TRAINING_RUN, KEY.name, KEY.namespace)
    assert await run.reconcile() is None
    assert await run.jobs() == []
