"""apply, get, describe, delete and wait over an embedded store."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
import yaml

from belvedere_platform.store.kinds import TRAINING_RUN


def test_apply_creates_changes_and_leaves_alone(terminal: Any, run_yaml: str) -> None:
    file = terminal.write("run.yaml", run_yaml)
    assert terminal.out("apply", "-f", file) == "trainingrun/clip-v1 created\n"
    assert terminal.out("apply", "-f", file) == "trainingrun/clip-v1 unchanged\n"
    changed = run_yaml + "  suspend: true\n"
    assert terminal.out("apply", "-f", "-", stdin=changed) == "trainingrun/clip-v1 configured\n"
    assert terminal.get(TRAINING_RUN, "clip-v1")["spec"]["suspend"] is True
    assert terminal.out("apply", "-f", file, "-o", "name") == "trainingrun/clip-v1\n"
    applied = terminal.json("apply", "-f", file)
    assert applied["items"][0]["metadata"]["uid"]


def test_apply_takes_folders_and_several_documents(terminal: Any, run_yaml: str) -> None:
    config = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: {x: y}\n"
    terminal.write("many/1.yaml", f"{run_yaml}---\n# nothing\n---\n{config}")
    terminal.write("many/2.yml", config.replace("name: a", "name: b, namespace: other"))
    terminal.write("many/readme.txt", "not YAML: [")
    out = terminal.out("apply", "-f", str(terminal.home.parent / "many"), "-n", "team")
    assert out.splitlines() == ["trainingrun/clip-v1 created", "configmap/a created", "configmap/b created"]
    assert set(terminal.out("get", "cm", "-A", "-o", "name").split()) == {"configmap/a", "configmap/b"}
    assert terminal.out("get", "cm", "a", "-n", "team", "-o", "name") == "configmap/a\n"


def test_nothing_is_applied_when_one_document_is_wrong(terminal: Any, run_yaml: str) -> None:
    wrong = run_yaml.replace("clip-v1", "clip-v2").replace("optimization", "optimisation")
    file = terminal.write("two.yaml", f"{run_yaml}---{wrong}")
    message = terminal.error(2, "apply", "-f", file)
    assert message.startswith(f"{file}:10: TrainingRun clip-v2: ")
    assert "spec.optimisation is not a field; did you mean optimization?" in message
    assert terminal.json("get", "trun")["items"] == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("kind: [", "not YAML"),
        ("- a\n", "must be a map"),
        ("apiVersion: belvedere.dev/v1\nkind: TrainingRun\nmetadata: {name: a}\n", "did you mean apiVersion belvedere.dev/v1alpha1"),
        ("apiVersion: belvedere.dev/v1alpha1\nkind: TrainRun\nmetadata: {name: a}\n", "kind TrainingRun?"),
        ("apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n", "known kinds are"),
        ("apiVersion: v1\nkind: ConfigMap\n", "metadata.name of this ConfigMap is missing"),
        ("\n", "there is no object in"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_named(terminal: Any, text: str, expected: str) -> None:
    file = terminal.write("bad.yaml", text)
    message = terminal.error(2, "apply", "-f", file)
    assert expected in message
    assert file in message


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("pairs: 1000", "pairs: many"), "spec.optimization.pairs is 'many'; it must be a whole number"),
        (("pairs: 1000", "pairs: 0"), "spec.optimization.pairs is 0; it must be at least 1"),
        (("model: clip", "model: clip\n  size: huge"), "spec.size is 'huge'; it must be nano, small, base or large"),
        (("model: clip", "model: clip\n  workers: {min: 3, max: 2}"), "workers.min must not be greater than workers.max"),
    ],
)  # fmt: skip
def test_wrong_fields_are_named(terminal: Any, run_yaml: str, change: tuple[str, str], expected: str) -> None:
    assert expected in terminal.error(2, "apply", "-f", "-", stdin=run_yaml.replace(*change))


def test_files_that_are_missing_or_given_twice(terminal: Any, run_yaml: str) -> None:
    assert "absent.yaml does not exist" in terminal.error(3, "apply", "-f", "absent.yaml")
    assert "is given twice" in terminal.error(2, "apply", "-f", "-", stdin=f"{run_yaml}---{run_yaml}")


def test_a_dry_run_writes_nothing(terminal: Any, run_yaml: str) -> None:
    assert "would be created" in terminal.out("apply", "--dry-run", "-f", "-", stdin=run_yaml)
    assert terminal.json("get", "trun")["items"] == []


@pytest.mark.parametrize("word", ["trun", "TrainingRun", "trainingruns", "TRAININGRUN", "trainingruns.belvedere.dev"])
def test_kinds_have_many_names(terminal: Any, run_yaml: str, word: str) -> None:
    terminal.out("apply", "-f", "-", stdin=run_yaml)
    assert terminal.out("get", word, "-o", "name") == "trainingrun/clip-v1\n"


def with_status(run_yaml: str) -> dict[str, Any]:
    manifest: dict[str, Any] = yaml.safe_load(run_yaml)
    ready = {"type": "Ready", "status": "False", "reason": "Training", "message": "attempt 1 is training"}
    manifest["status"] = {
        "phase": "Running",
        "progress": {"pairs": 640, "loss": 2.34567},
        "conditions": [{**ready, "observedGeneration": 1, "lastTransitionTime": "2026-01-01T00:00:00Z"}],
    }
    return manifest


def test_get_shows_printer_columns(terminal: Any, run_yaml: str) -> None:
    terminal.put(with_status(run_yaml))
    heading, row = terminal.out("get", "trun").splitlines()
    assert heading.split() == ["NAME", "PHASE", "PAIRS", "LOSS", "VERSION", "AGE"]
    assert row.split()[:4] == ["clip-v1", "Running", "640", "2.346"]
    wide = terminal.out("get", "trun", "-o", "wide")
    assert "REASON" in wide
    assert "Training" in wide
    assert terminal.out("get", "trun", "-A").splitlines()[0].startswith("NAMESPACE")
    assert terminal.out("get", "trun", "-l", "team=search", "-o", "name")
    assert terminal.out("get", "trun", "-l", "team=other", "-o", "name") == ""
    assert terminal.run("get", "trun", "-n", "other").stderr == "there are no trainingruns\n"
    one = yaml.safe_load(terminal.out("get", "trun/clip-v1", "-o", "yaml"))
    assert one["kind"] == "TrainingRun"
    assert "managedFields" not in one["metadata"]


def test_what_get_cannot_find(terminal: Any) -> None:
    assert terminal.error(2, "get", "trainignrun") == "'trainignrun' is not a kind; did you mean TrainingRun?"
    assert "known are TrainingRun" in terminal.error(2, "get", "zzz")
    assert terminal.error(3, "get", "trun", "nothing") == "TrainingRun default/nothing does not exist"
    assert "--selector part 'a' must be LABEL=VALUE" in terminal.error(2, "get", "trun", "-l", "a")


def test_yaml_that_get_prints_can_be_applied_again(terminal: Any, run_yaml: str) -> None:
    terminal.out("apply", "-f", "-", stdin=run_yaml)
    printed = terminal.out("get", "trun", "-o", "yaml")
    assert terminal.out("apply", "-f", "-", stdin=printed).endswith(("unchanged\n", "configured\n"))


def test_describe_shows_conditions_children_and_events(terminal: Any, run_yaml: str) -> None:
    (run,) = terminal.put(with_status(run_yaml))
    uid = run["metadata"]["uid"]
    owner = {"apiVersion": "belvedere.dev/v1alpha1", "kind": "TrainingRun", "name": "clip-v1", "uid": uid}
    job = {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": "clip-v1-1", "ownerReferences": [owner]},
        "spec": {},
        "status": {"jobStatus": "RUNNING"},
    }
    event = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": "e"},
        "involvedObject": {"kind": "TrainingRun", "name": "clip-v1", "uid": uid},
        "type": "Normal",
        "reason": "AttemptStarted",
        "message": "attempt 1",
        "count": 1,
        "lastTimestamp": "2026-01-01T00:00:00Z",
    }
    terminal.put(job, event)
    text = terminal.out("describe", "trun", "clip-v1")
    assert "attempt 1 is training" in text
    assert "└─ RayJob/clip-v1-1  RUNNING" in text
    assert "AttemptStarted" in text
    found = terminal.json("describe", "trun/clip-v1")
    assert found["children"][0]["name"] == "clip-v1-1"
    assert found["events"][0]["reason"] == "AttemptStarted"
    assert "KIND NAME or KIND/NAME" in terminal.error(2, "describe", "trun")


def test_delete(terminal: Any, run_yaml: str) -> None:
    file = terminal.write("run.yaml", run_yaml)
    terminal.out("apply", "-f", file)
    assert terminal.out("delete", "trun", "clip-v1") == "trainingrun/clip-v1 deleted\n"
    assert "does not exist" in terminal.error(3, "delete", "trun/clip-v1")
    assert terminal.out("delete", "trun/clip-v1", "--ignore-not-found") == ""
    terminal.out("apply", "-f", file)
    assert terminal.out("delete", "-f", file) == "trainingrun/clip-v1 deleted\n"
    assert "needs a name" in terminal.error(2, "delete", "trun")
    assert "either KIND NAME or --filename" in terminal.error(2, "delete")


def test_wait(terminal: Any, run_yaml: str) -> None:
    terminal.put(with_status(run_yaml))
    target = ("wait", "trun/clip-v1", "--timeout", "60", "--for")
    assert terminal.out(*target, "condition=Ready=False") == "trainingrun/clip-v1 is condition=Ready=False\n"
    assert terminal.out(*target, "jsonpath={.status.phase}=Running")
    assert terminal.out(*target, "create")
    late = terminal.error(5, "wait", "trun/clip-v1", "--timeout", "0.000001", "--for", "condition=Ready")
    assert "Ready is False, Training: attempt 1 is training" in late
    assert "it does not exist" in terminal.error(5, "wait", "trun/none", "--timeout", "0.000001", "--for", "create")
    assert "must be condition=TYPE" in terminal.error(2, *target, "happiness")
    assert "cannot be read at" in terminal.error(2, *target, "jsonpath={.a[}=x")


def test_objects_are_complete_json(terminal: Any, run_yaml: str) -> None:
    terminal.put(with_status(run_yaml))
    listed = json.loads(terminal.out("get", "trun", "-o", "json"))
    assert listed["items"][0]["status"]["progress"]["pairs"] == 640


def test_watch_prints_each_change(terminal: Any, run_yaml: str) -> None:
    terminal.put(with_status(run_yaml))
    command = [sys.executable, "-m", "belvedere_platform.cli.main", "--home", str(terminal.home), "get", "trun", "-w"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        try:
            assert watching.stdout.readline().split()[:2] == ["NAME", "PHASE"]
            assert watching.stdout.readline().split()[:2] == ["clip-v1", "Running"]
            changed = with_status(run_yaml)
            changed["status"]["phase"] = "Succeeded"
            terminal.put(changed)
            assert watching.stdout.readline().split()[:2] == ["clip-v1", "Succeeded"]
            terminal.out("delete", "trun", "clip-v1")
            assert watching.stdout.readline().split()[-1] == "deleted"
        finally:
            watching.terminate()
