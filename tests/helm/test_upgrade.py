"""From the previous version to this one: definitions take what is stored, values stay valid, and no pod starts anew for nothing.

`previous/` holds the resource definitions of the version before; a release copies its own there.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from containing import contains

from .conftest import CHART, FULL, S3, Manifest, render

PREVIOUS = Path(__file__).parent / "previous"
EXAMPLES = CHART.parent.parent / "deploy" / "examples"
KINDS = ("TrainingRun", "ModelVersion", "Engine", "ModelService")
WIDER = {"maximum", "maxLength", "maxItems", "maxProperties"}
NARROWER = {"minimum", "minLength", "minItems", "minProperties"}


def definitions(folder: Path) -> dict[str, Manifest]:
    """Return the resource definitions in a folder by kind."""
    found = [yaml.safe_load(path.read_text()) for path in sorted(folder.glob("belvedere.dev_*.yaml"))]
    return {one["spec"]["names"]["kind"]: one for one in found}


def narrowed(old: Manifest, new: Manifest, place: str) -> Iterator[str]:
    """Give each place where the new schema refuses what the old one took."""
    if old.get("type") != new.get("type"):
        yield f"{place}: {old.get('type')} became {new.get('type')}"
    yield from (
        f"{place}.{name} is gone" for name in old.get("properties", {}).keys() - new.get("properties", {}).keys()
    )
    yield from (f"{place}.{name} must be given" for name in set(new.get("required", ())) - set(old.get("required", ())))
    if "enum" in new and set(old.get("enum", new["enum"])) - set(new["enum"]):
        yield f"{place} no longer takes {set(old['enum']) - set(new['enum'])}"
    for bound in WIDER & new.keys():
        if bound not in old or new[bound] < old[bound]:
            yield f"{place}.{bound} is {new[bound]} now"
    for bound in NARROWER & new.keys():
        if new[bound] > old.get(bound, 0):
            yield f"{place}.{bound} is {new[bound]} now"
    if new.get("pattern", old.get("pattern")) != old.get("pattern"):
        yield f"{place} must match {new['pattern']}"
    for name in old.get("properties", {}).keys() & new.get("properties", {}).keys():
        yield from narrowed(old["properties"][name], new["properties"][name], f"{place}.{name}")
    for below in ("items", "additionalProperties"):
        if isinstance(old.get(below), dict) and isinstance(new.get(below), dict):
            yield from narrowed(old[below], new[below], f"{place}[]")


def schema(definition: Manifest, version: str) -> Manifest:
    [found] = [one for one in definition["spec"]["versions"] if one["name"] == version]
    return dict(found["schema"]["openAPIV3Schema"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_version_that_stays_takes_all_that_it_took(kind: str) -> None:
    old, new = definitions(PREVIOUS)[kind], definitions(CHART / "files" / "crds")[kind]
    for version in old["spec"]["versions"]:
        before, after = schema(old, version["name"]), schema(new, version["name"])
        assert list(narrowed(before["properties"]["spec"], after["properties"]["spec"], "spec")) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"type": "string"}, {"type": "integer"}),
        ({"properties": {"a": {}}}, {"properties": {}}),
        ({}, {"required": ["a"]}),
        ({"enum": ["a", "b"]}, {"enum": ["a"]}),
        ({"maximum": 5}, {"maximum": 4}),
        ({}, {"maxLength": 4}),
        ({"minimum": 1}, {"minimum": 2}),
        ({"type": "string"}, {"type": "string", "pattern": "^a"}),
        ({"properties": {"a": {"items": {"type": "string"}}}}, {"properties": {"a": {"items": {"type": "object"}}}}),
    ],
)
def test_each_kind_of_narrowing_would_be_seen(old: Manifest, new: Manifest) -> None:
    assert len(list(narrowed(old, new, "spec"))) == 1
    assert list(narrowed(old, old, "spec")) == []


def test_a_new_version_of_the_chart_alone_starts_no_pod_anew(tmp_path: Path) -> None:
    copy = tmp_path / "belvedere"
    shutil.copytree(CHART, copy)
    text = (copy / "Chart.yaml").read_text()
    (copy / "Chart.yaml").write_text(text.replace("\nversion: 0.1.0", "\nversion: 0.1.1"))
    assert (copy / "Chart.yaml").read_text() != text
    for values in (S3, FULL):
        before, after = (_pod_templates(values, chart) for chart in (CHART, copy))
        assert before == after
        assert before


def _pod_templates(values: Manifest, chart: Path) -> dict[str, Any]:
    done = subprocess.run(
        ["helm", "template", "belvedere", str(chart), "--values", "-"],
        input=json.dumps(values), capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    found = [one for one in yaml.safe_load_all(done.stdout) if one and one["kind"] == "Deployment"]
    return {one["metadata"]["name"]: one["spec"]["template"] for one in found}


def test_values_of_the_previous_version_are_valid_still() -> None:
    assert render({**S3, "global": {}, "crds": {"install": True, "keep": True}})


class Upgrade:
    """The definitions under a group of this test's own, so that nobody else's are touched."""

    def __init__(self, kubeconfig: Path) -> None:
        self._kubeconfig = kubeconfig
        self.group = f"u{uuid.uuid4().hex[:8]}.belvedere.dev"
        self.namespace = self.group.replace(".", "-")

    def kubectl(self, *words: str, given: list[Manifest] | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["kubectl", "--kubeconfig", str(self._kubeconfig), *words],
            input=None if given is None else yaml.safe_dump_all(given),
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip

    def must(self, *words: str, given: list[Manifest] | None = None) -> str:
        done = self.kubectl(*words, given=given)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def install(self, folder: Path) -> None:
        """Apply definitions as `helm upgrade` does, and wait until they are served."""
        wanted = [self._moved(one) for one in definitions(folder).values()]
        self.must("apply", "--server-side", "--force-conflicts", "-f", "-", given=wanted)
        names = [f"crd/{one['metadata']['name']}" for one in wanted]
        self.must("wait", "--for=condition=Established", "--timeout=60s", *names)

    def _moved(self, definition: Manifest) -> Manifest:
        moved: Manifest = yaml.safe_load(yaml.safe_dump(definition).replace("belvedere.dev", self.group))
        return moved

    def moved_examples(self) -> list[Manifest]:
        """Return the examples as they are, but of the test's group."""
        found: list[Manifest] = []
        for path in sorted(EXAMPLES.rglob("*.yaml")):
            for one in yaml.safe_load_all(path.read_text()):
                if one and one["kind"] in KINDS:
                    version = one["apiVersion"].partition("/")[2]
                    metadata = {"name": f"example-{len(found)}", "namespace": self.namespace}
                    found.append({**one, "apiVersion": f"{self.group}/{version}", "metadata": metadata})
        return found

    def stored(self) -> dict[str, Manifest]:
        kinds = ",".join(f"{one['spec']['names']['plural']}.{self.group}" for one in definitions(PREVIOUS).values())
        items = json.loads(self.must("get", kinds, "-n", self.namespace, "-o", "json"))["items"]
        return {f"{one['kind']}/{one['metadata']['name']}": one for one in items}


@pytest.fixture
def upgrade(kubeconfig: Path) -> Iterator[Upgrade]:
    made = Upgrade(kubeconfig)
    made.must("create", "namespace", made.namespace)
    yield made
    plurals = [one["spec"]["names"]["plural"] for one in definitions(PREVIOUS).values()]
    made.kubectl("delete", "--wait=false", "crd", *(f"{plural}.{made.group}" for plural in plurals))
    made.kubectl("delete", "--wait=false", "namespace", made.namespace)


@pytest.mark.slow
@pytest.mark.cluster
def test_what_the_previous_version_stored_is_unharmed(upgrade: Upgrade) -> None:
    upgrade.install(PREVIOUS)
    # Examples of today may use what the previous version did not have: it refuses those, and they are not its own.
    given = [*upgrade.moved_examples(), *_one_of_each(upgrade)]
    upgrade.kubectl("create", "-f", "-", given=given)
    before = upgrade.stored()
    taken = [one for one in given if f"{one['kind']}/{one['metadata']['name']}" in before]
    assert {one["kind"] for one in taken} == set(KINDS)

    upgrade.install(CHART / "files" / "crds")
    after = upgrade.stored()
    assert after.keys() == before.keys()
    for name, one in after.items():
        assert one["metadata"]["uid"] == before[name]["metadata"]["uid"]
        assert one["metadata"]["resourceVersion"] == before[name]["metadata"]["resourceVersion"]
        for field, value in before[name]["spec"].items():
            assert contains(one["spec"].get(field), value), f"{name} spec.{field}"

    # Each can still be written, also by who knows nothing of the new version's fields.
    changed = [{**one, "metadata": {**one["metadata"], "labels": {"touched": "yes"}}} for one in taken]
    upgrade.must("apply", "--server-side", "--field-manager=person", "--force-conflicts", "-f", "-", given=changed)
    names = [f"{one['spec']['names']['plural']}.{upgrade.group}" for one in definitions(PREVIOUS).values()]
    for found in json.loads(upgrade.must("get", "crd", *names, "-o", "json"))["items"]:
        served = {one["name"] for one in found["spec"]["versions"] if one["served"]}
        assert set(found["status"]["storedVersions"]) <= served


def _one_of_each(upgrade: Upgrade) -> list[Manifest]:
    digest = "sha256:" + "a" * 64
    specs: dict[str, Manifest] = {
        "TrainingRun": {"model": "clip", "data": {"dataset": "emoji"}, "optimization": {"pairs": 1000}},
        "ModelVersion": {"model": "clip", "digest": digest, "evaluation": {"passed": True}},
        "Engine": {"modelVersion": "v1", "target": {"precision": "int8"}},
        "ModelService": {"model": "clip", "version": "v1", "rollout": {"gates": {"shadow": {}}}},
    }
    version = f"{upgrade.group}/v1alpha1"
    return [
        {"apiVersion": version, "kind": kind, "metadata": {"name": "one", "namespace": upgrade.namespace}, "spec": spec}
        for kind, spec in specs.items()
    ]
