"""Deployments and Jobs of a real store become real processes; a control plane that comes back adopts them."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from belvedere_operators.executors.deployment import deployment_executor
from belvedere_operators.executors.identity import Identity
from belvedere_operators.executors.job import job_executor
from belvedere_platform.ports import free_port
from belvedere_platform.store import Manifest
from belvedere_platform.store.kinds import DEPLOYMENT, JOB

if TYPE_CHECKING:
    from .conftest import World


def workload(kind: str, script: str, **spec: Any) -> Manifest:
    container = {"name": "main", "image": "ignored", "command": ["sh", "-c", script], **spec.pop("container", {})}
    template = {"spec": {"containers": [container], "terminationGracePeriodSeconds": 2, **spec.pop("pod", {})}}
    return {
        "apiVersion": {"Deployment": "apps/v1", "Job": "batch/v1"}[kind],
        "kind": kind,
        "metadata": {"name": "it", "namespace": "default"},
        "spec": {"template": template, **spec},
    }


def ready(manifest: Manifest) -> bool:
    status = manifest.get("status", {})
    return (
        status.get("readyReplicas", 0) == manifest["spec"].get("replicas", 1)
        and status["observedGeneration"] == manifest["metadata"]["generation"]
    )


def condition(manifest: Manifest, type_: str) -> dict[str, Any]:
    found = [c for c in manifest.get("status", {}).get("conditions", []) if c["type"] == type_]
    return found[0] if found else {}


def log_of(world: World, kind: str) -> str:
    return (world.home / f"logs/default/{kind}/it/0-main.log").read_text()


def pids(home: Path) -> dict[str, str]:
    return {p.parent.name: p.read_text() for p in (home / "processes").glob("*/identity")}


async def test_deployment_runs_its_replicas_and_deleting_it_ends_them(world: World) -> None:
    async with world.control_plane(deployment_executor):
        await world.apply(workload("Deployment", "exec sleep 300", replicas=2))
        seen = await world.until(DEPLOYMENT, "it", ready)
        assert condition(seen, "Available")["status"] == "True"
        await world.grown_to(4)  # two commands and their supervisors
        await world.apply(workload("Deployment", "exec sleep 300", replicas=1))
        await world.until(DEPLOYMENT, "it", ready)
        left = await world.grown_to(2)
        await world.store.delete(DEPLOYMENT, "it", "default")
        await world.gone(left)


async def test_deployment_is_adopted_and_not_started_twice(world: World) -> None:
    async with world.control_plane(deployment_executor):
        await world.apply(workload("Deployment", "exec sleep 300", replicas=2))
        await world.until(DEPLOYMENT, "it", ready)
    before = pids(world.home)
    running = await world.grown_to(4)  # the control plane is gone, the processes are not
    async with world.control_plane(deployment_executor):
        await world.apply(workload("Deployment", "exec sleep 300", replicas=3))
        await world.until(DEPLOYMENT, "it", ready)
        after = pids(world.home)
        assert {slot: after[slot] for slot in before} == before
        assert running < await world.grown_to(6)


async def test_deleted_while_the_control_plane_was_away(world: World) -> None:
    async with world.control_plane(deployment_executor):
        await world.apply(workload("Deployment", "exec sleep 300"))
        await world.until(DEPLOYMENT, "it", ready)
    running = await world.grown_to(2)
    await world.store.delete(DEPLOYMENT, "it", "default")
    async with world.control_plane(deployment_executor):
        await world.gone(running)


async def test_ended_container_starts_again_after_a_backoff(world: World) -> None:
    async with world.control_plane(deployment_executor):
        script = (
            f"echo again >> {world.home}/starts; [ $(wc -l < {world.home}/starts) -ge 2 ] && exec sleep 300; exit 4"
        )
        await world.apply(workload("Deployment", script))
        seen = await world.until(
            DEPLOYMENT, "it", lambda m: "exited with 4" in condition(m, "Available").get("message", "")
        )
        assert condition(seen, "Available")["status"] == "False"
        await world.until(DEPLOYMENT, "it", ready)


async def test_killed_process_is_noticed_at_once(world: World) -> None:
    async with world.control_plane(deployment_executor):
        await world.apply(workload("Deployment", "exec sleep 300"))
        await world.until(DEPLOYMENT, "it", ready)
        pid, start = next(iter(pids(world.home).values())).split()
        before = await world.grown_to(2)
        child = next(iter(before - {Identity(pid=int(pid), start_ticks=int(start))}))
        child.send(signal.SIGKILL)
        await world.until(DEPLOYMENT, "it", lambda m: "exited with 137" in condition(m, "Available").get("message", ""))
        await world.until(DEPLOYMENT, "it", ready)


async def test_template_change_replaces_the_process(world: World) -> None:
    async with world.control_plane(deployment_executor):
        await world.apply(workload("Deployment", "echo one; exec sleep 300"))
        await world.until(DEPLOYMENT, "it", ready)
        await wait_for_text(world, "one\n")
        old = world.running()
        await world.apply(workload("Deployment", "echo two; exec sleep 300"))
        await world.gone(old)
        await wait_for_text(world, "one\ntwo\n")


async def test_readiness_probe_is_honoured(world: World) -> None:
    port = free_port()
    script = f"while [ ! -e {world.home}/go ]; do sleep 0.05; done; exec python3 -m http.server --bind 127.0.0.1 {port}"
    probe = {"httpGet": {"path": "/", "port": "web"}, "periodSeconds": 1}
    container = {"ports": [{"name": "web", "containerPort": port}], "readinessProbe": probe}
    async with world.control_plane(deployment_executor):
        await world.apply(workload("Deployment", script, container=container))
        await world.until(
            DEPLOYMENT, "it", lambda m: "cannot be reached" in condition(m, "Available").get("message", "")
        )
        (world.home / "go").touch()
        await world.until(DEPLOYMENT, "it", ready)


async def test_config_map_is_mounted_waited_for_and_its_change_reaches_the_process(world: World) -> None:
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings", "namespace": "default"}}
    script = "trap 'cat $0' HUP; cat $0; while :; do sleep 0.05; done"
    container = {
        "args": ["$(BELVEDERE_ROOT)/etc/it/word"],
        "volumeMounts": [{"name": "settings", "mountPath": "/etc/it"}],
    }
    pod = {"volumes": [{"name": "settings", "configMap": {"name": "settings"}}]}
    async with world.control_plane(deployment_executor):
        await world.apply(workload("Deployment", script, container=container, pod=pod))
        await world.until(
            DEPLOYMENT,
            "it",
            lambda m: "ConfigMap settings does not exist" in condition(m, "Progressing").get("message", ""),
        )
        await world.apply({**config, "data": {"word": "first\n"}})
        await world.until(DEPLOYMENT, "it", ready)
        before = pids(world.home)
        await wait_for_text(world, "first\n")
        await world.apply({**config, "data": {"word": "second\n"}})
        await wait_for_text(world, "first\nsecond\n")
        assert pids(world.home) == before


async def wait_for_text(world: World, text: str) -> None:
    async with asyncio.timeout(90):
        while log_of(world, "deployment") != text:  # noqa: ASYNC110 - a file that another process writes
            await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    ("script", "limit", "type_", "failed"),
    [("true", 0, "Complete", 0), ("exit 3", 0, "Failed", 1), ("exit 3", 1, "Failed", 2)],
)
async def test_job_runs_to_its_end(world: World, script: str, limit: int, type_: str, failed: int) -> None:
    async with world.control_plane(job_executor):
        await world.apply(workload("Job", f"echo run; {script}", backoffLimit=limit))
        seen = await world.until(JOB, "it", lambda m: condition(m, type_).get("status") == "True")
    assert (seen["status"]["failed"], seen["status"]["succeeded"]) == (failed, int(type_ == "Complete"))
    assert log_of(world, "job") == "run\n" * max(1, failed)
    if type_ == "Failed":
        assert f"exited with 3 (attempt {failed}): run" in condition(seen, "Failed")["message"]
    async with world.control_plane(job_executor):
        await world.store.delete(JOB, "it", "default")
        await world.apply({**workload("Job", "echo other"), "metadata": {"name": "it", "namespace": "default"}})
        await world.until(JOB, "it", lambda m: condition(m, "Complete").get("status") == "True")
    assert log_of(world, "job").endswith("other\n")


async def test_job_that_ended_while_nobody_looked(world: World) -> None:
    async with world.control_plane(job_executor):
        await world.apply(
            workload("Job", f"while [ ! -e {world.home}/go ]; do sleep 0.02; done; echo once; exit 5", backoffLimit=0)
        )
        await world.until(JOB, "it", lambda m: m.get("status", {}).get("ready") == 1)
    running = world.running()
    (world.home / "go").touch()
    await world.gone(running)
    async with world.control_plane(job_executor):
        seen = await world.until(JOB, "it", lambda m: condition(m, "Failed"))
    assert "exited with 5" in condition(seen, "Failed")["message"]
    assert log_of(world, "job") == "once\n"


async def test_job_is_suspended_and_goes_on(world: World) -> None:
    script = f"echo run; while [ ! -e {world.home}/go ]; do sleep 0.02; done"
    async with world.control_plane(job_executor):
        await world.apply(workload("Job", script, suspend=False))
        await world.until(JOB, "it", lambda m: m.get("status", {}).get("ready") == 1)
        running = world.running()
        await world.apply(workload("Job", script, suspend=True))
        await world.until(JOB, "it", lambda m: condition(m, "Suspended").get("status") == "True")
        await world.gone(running)
        (world.home / "go").touch()
        await world.apply(workload("Job", script, suspend=False))
        await world.until(JOB, "it", lambda m: condition(m, "Complete"))


async def test_job_that_takes_too_long_is_stopped(world: World) -> None:
    async with world.control_plane(job_executor):
        await world.apply(workload("Job", "sleep 300", activeDeadlineSeconds=1))
        seen = await world.until(JOB, "it", lambda m: condition(m, "Failed"))
        assert condition(seen, "Failed")["reason"] == "DeadlineExceeded"
    assert world.running() == set()


async def test_job_wider_than_one_pod_is_refused(world: World) -> None:
    async with world.control_plane(job_executor):
        await world.apply(workload("Job", "true", parallelism=3))
        seen = await world.until(JOB, "it", lambda m: condition(m, "Progressing"))
    assert "spec.parallelism is 3" in condition(seen, "Progressing")["message"]


async def test_initial_container_runs_first(world: World) -> None:
    first = {"name": "prepare", "command": ["sh", "-c", f"echo prepared > {world.home}/prepared"]}
    async with world.control_plane(job_executor):
        await world.apply(workload("Job", f"cat {world.home}/prepared", pod={"initContainers": [first]}))
        await world.until(JOB, "it", lambda m: condition(m, "Complete"))
    assert log_of(world, "job") == "prepared\n"
    assert os.listdir(world.home / "logs/default/job/it") != []
