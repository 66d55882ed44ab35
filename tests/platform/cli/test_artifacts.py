"""artifact, model, lineage and logs."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from belvedere_platform.store.kinds import MODEL_VERSION


def push(terminal: Any, tag: str = "demo/wrong") -> str:
    config = {"model": "clip", "metrics": {"r1": 0.5}, "lineage": {"dataDigest": "sha256:" + "d" * 64}}
    return str(terminal.artifacts.push("model", {"model.safetensors": tag.encode()}, config=config, tag=tag).digest)


def test_a_model_comes_in_with_a_reason(terminal: Any) -> None:
    digest = push(terminal)
    words = (
        "model",
        "import",
        "--from",
        "demo/wrong",
        "--name",
        "v3",
        "--model",
        "clip",
        "--waive-evaluation",
        "a test",
    )
    assert terminal.out(*words) == f"modelversion/v3 created from {digest}\n"
    spec = terminal.get(MODEL_VERSION, "v3")["spec"]
    assert spec["digest"] == digest
    assert spec["evaluation"] == {"passed": False, "waived": "a test"}
    assert spec["lineage"] == {"dataDigest": "sha256:" + "d" * 64}
    assert spec["metrics"] == {"r1": 0.5}
    assert terminal.artifacts.resolve("models/v3").digest == digest
    assert terminal.out(*words)
    other = push(terminal, "demo/other")
    conflict = terminal.error(4, *(word.replace("demo/wrong", "demo/other") for word in words))
    assert "ModelVersion v3 exists with" in conflict
    assert terminal.artifacts.resolve("models/v3").digest == digest != other


def test_a_model_comes_in_from_a_directory(terminal: Any, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "examples").mkdir(parents=True)
    (source / "model.safetensors").write_bytes(b"weights")
    (source / "examples/1.png").write_bytes(b"picture")
    (source / ".hidden").write_bytes(b"")
    terminal.out(
        "model", "import", "--from", str(source), "--name", "v1", "--model", "clip", "--waive-evaluation", "ours"
    )
    assert [entry.name for entry in terminal.artifacts.resolve("models/v1").files] == [
        "examples/1.png",
        "model.safetensors",
    ]


def test_what_cannot_come_in(terminal: Any) -> None:
    words = ("model", "import", "--name", "v1", "--model", "clip", "--waive-evaluation", "x", "--from")
    assert "no artifact 'absent'" in terminal.error(3, *words, "absent")
    terminal.artifacts.push("dataset", {"a": b""}, config={}, tag="datasets/a")
    assert "is the artifact of a dataset" in terminal.error(2, *words, "datasets/a")
    assert "Missing option '--waive-evaluation'" in terminal.error(
        2, "model", "import", "--from", "x", "--name", "v", "--model", "m"
    )


def test_artifacts_are_listed_tagged_shown_and_pulled(terminal: Any, tmp_path: Path) -> None:
    digest = push(terminal)
    assert "demo/wrong" in terminal.out("artifact", "list")
    assert terminal.json("artifact", "list", "--kind", "model")[0]["digest"] == digest
    assert terminal.json("artifact", "list", "--kind", "engine") == []
    assert terminal.out("artifact", "tag", "demo/wrong", "demo/again") == f"{digest} is demo/again\n"
    shown = yaml.safe_load(terminal.out("artifact", "show", "demo/again"))
    assert shown["config"]["metrics"] == {"r1": 0.5}
    terminal.out("artifact", "pull", "demo/again", "--into", str(tmp_path / "out"))
    assert (tmp_path / "out/model.safetensors").read_bytes() == b"demo/wrong"
    config = terminal.write("config.json", '{"name": "mine"}')
    terminal.out(
        "artifact",
        "import",
        "--from",
        str(tmp_path / "out"),
        "--kind",
        "dataset",
        "--tag",
        "datasets/mine",
        "--config",
        config,
    )
    assert terminal.artifacts.config("datasets/mine") == {"name": "mine", "kind": "dataset"}


def test_a_corrupted_blob_is_named(terminal: Any) -> None:
    push(terminal)
    entry = terminal.artifacts.resolve("demo/wrong").files[0]
    (terminal.home / "artifacts/blobs/sha256" / entry.digest[7:]).write_bytes(b"damage")
    message = terminal.error(7, "artifact", "verify", "demo/wrong")
    assert "model.safetensors of demo/wrong is corrupt" in message
    assert entry.digest in message


def test_garbage_is_collected(terminal: Any) -> None:
    kept = push(terminal, "models/v1")
    push(terminal, "models/gone")
    version = {"model": "clip", "digest": kept, "evaluation": {"passed": True}}
    terminal.put(
        {"apiVersion": "belvedere.dev/v1alpha1", "kind": "ModelVersion", "metadata": {"name": "v1"}, "spec": version}
    )
    assert "would remove 1 artifacts" in terminal.out("artifact", "gc", "--dry-run")
    assert "would remove 0 artifacts" in terminal.out("artifact", "gc", "--dry-run", "--keep-tag", "models/*")
    assert terminal.json("artifact", "gc")["artifacts"][0]["tags"] == ["models/gone"]
    assert [one["digest"] for one in terminal.json("artifact", "list")] == [kept]


def test_what_another_tool_put_there_is_named_and_stays(terminal: Any) -> None:
    push(terminal, "models/gone")
    index = terminal.home / "artifacts/index.json"
    content = json.dumps({"schemaVersion": 2, "artifactType": "application/vnd.example.chart", "layers": []}).encode()
    name = hashlib.sha256(content).hexdigest()
    (terminal.home / "artifacts/blobs/sha256" / name).write_bytes(content)
    document = json.loads(index.read_text())
    document["manifests"].append({"mediaType": "a/manifest", "digest": f"sha256:{name}", "size": len(content)})
    index.write_text(json.dumps(document))
    assert f"foreign: application/vnd.example.chart  sha256:{name[:12]}" in terminal.out("artifact", "list")
    assert [one["kind"] for one in terminal.json("artifact", "list")] == ["model", "foreign"]
    assert [one["tags"] for one in terminal.json("artifact", "gc")["artifacts"]] == [["models/gone"]]
    foreign = {
        "kind": "foreign",
        "artifactType": "application/vnd.example.chart",
        "digest": f"sha256:{name}",
        "tags": [],
    }
    assert terminal.json("artifact", "list") == [foreign]
    assert terminal.json("artifact", "list", "--kind", "model") == []


def test_lineage(terminal: Any, run_yaml: str) -> None:
    terminal.artifacts.push("dataset", {"a": b""}, config={}, tag="datasets/emoji")
    terminal.out("apply", "-f", "-", stdin=run_yaml)
    tree = terminal.out("lineage", "clip-v1").splitlines()
    assert tree[0].startswith("dataset emoji")
    assert "* data → TrainingRun clip-v1" in tree[1]
    assert [edge["role"] for edge in terminal.json("lineage")["edges"]] == ["data"]
    assert terminal.out("lineage", "-o", "dot").startswith("digraph lineage {")
    assert "nothing called 'x'" in terminal.error(3, "lineage", "x")


def job(name: str, *, done: bool) -> dict[str, Any]:
    conditions = [{"type": "Complete", "status": "True"}] if done else []
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {},
        "status": {"conditions": conditions},
    }


def test_logs_of_a_job_and_of_what_a_run_started(terminal: Any, run_yaml: str) -> None:
    terminal.put(job("build", done=True))
    assert "has written no log; looked in" in terminal.error(3, "logs", "job", "build")
    folder = terminal.home / "logs/default/job/build"
    folder.mkdir(parents=True)
    (folder / "0-build.log").write_text("one\ntwo\nthree")
    assert terminal.out("logs", "job/build") == "one\ntwo\nthree\n"
    assert terminal.out("logs", "job/build", "-f").startswith("one\ntwo\n")
    assert terminal.out("logs", "job/build", "--tail", "2") == "two\nthree\n"
    (folder / "1-build.log").write_text("again\n")
    assert "[build/1-build] again" in terminal.out("logs", "job/build")

    terminal.out("apply", "-f", "-", stdin=run_yaml)
    assert "it has no process yet" in terminal.error(3, "logs", "trun", "clip-v1")
    uid = terminal.json("get", "trun", "clip-v1")["metadata"]["uid"]
    owner = {"apiVersion": "belvedere.dev/v1alpha1", "kind": "TrainingRun", "name": "clip-v1", "uid": uid}
    terminal.put(
        {
            "apiVersion": "ray.io/v1",
            "kind": "RayJob",
            "metadata": {"name": "clip-v1-1", "ownerReferences": [owner]},
            "spec": {},
        }
    )
    log = terminal.home / "logs/default/rayjob/clip-v1-1/driver.log"
    log.parent.mkdir(parents=True)
    log.write_text("training\n")
    assert terminal.out("logs", "trun", "clip-v1") == "training\n"


def test_a_log_that_is_turned_over_is_followed_and_nothing_is_said_twice(
    terminal: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal.put(job("build", done=False))
    folder = terminal.home / "logs/default/job/build"
    folder.mkdir(parents=True)
    log, older = folder / "0-build.log", folder / "0-build.1.log"
    log.write_text("one\ntwo\n")

    def turned_over_then_done(_: Any) -> bool:
        if older.exists():
            return True
        log.rename(older)
        log.write_text("three\n")
        return False

    monkeypatch.setattr("belvedere_platform.cli.logs.is_over", turned_over_then_done)
    assert terminal.out("logs", "job/build", "-f") == "one\ntwo\nthree\n"
    assert terminal.out("logs", "job/build", "--tail", "1") == "three\n"
    assert terminal.out("logs", "job/build").splitlines() == [
        "[build/0-build.1] one",
        "[build/0-build.1] two",
        "[build/0-build] three",
    ]


def test_logs_on_a_cluster_name_the_command(terminal: Any) -> None:
    message = terminal.error(5, "logs", "trun", "clip-v1", "--store", "kubernetes://")
    assert "kubectl logs -n default -l belvedere.dev/training-run=clip-v1" in message


def test_logs_of_a_service_are_those_of_its_replicas(terminal: Any) -> None:
    spec = {"model": "clip", "version": "v1"}
    service = {
        "apiVersion": "belvedere.dev/v1alpha1",
        "kind": "ModelService",
        "metadata": {"name": "emoji"},
        "spec": spec,
    }
    (made,) = terminal.put(service)
    owner = {"apiVersion": made["apiVersion"], "kind": "ModelService", "name": "emoji", "uid": made["metadata"]["uid"]}
    child = {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": {"name": "emoji-v1", "ownerReferences": [owner]},
    }
    terminal.put({**child, "spec": {}})
    folder = terminal.home / "ray/session_latest/logs/serve"
    folder.mkdir(parents=True)
    (folder / "replica_default.emoji-v1_V2Server_abc.log").write_text("loaded\n")
    (folder / "replica_default.emoji-v10_V2Server_abc.log").write_text("another\n")
    assert terminal.out("logs", "msvc", "emoji") == "loaded\n"


def test_a_full_disk_is_one_sentence(tmp_path: Path, terminal: Any) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(small)]
    mounted = subprocess.run(mount, check=False, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system: {mounted.stderr.strip()}")
    try:
        source = tmp_path / "source"
        source.mkdir()
        (source / "model.safetensors").write_bytes(os.urandom(1 << 20))
        words = ("--from", str(source), "--kind", "model", "--tag", "mine/big", "--artifacts", small.as_uri())
        message = terminal.error(7, "artifact", "import", *words)
        assert "no space left in" in message
        assert "free some space" in message
        assert [path for path in small.rglob("*") if path.is_file() and path.suffix != ".lock"] == []
    finally:
        subprocess.run(["umount", str(small)], check=True)
