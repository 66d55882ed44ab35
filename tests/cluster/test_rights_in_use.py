"""The chart's roles beside what the API server's audit log says was asked: nothing missing, and after the whole story nothing unused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from . import test_belvedere, test_faults, test_horizontal_scaling, test_nothing_left
from .release import Release

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

Right = tuple[str, str, str]
"""API group, resource, verb."""
COMPONENTS = ("operator", "gateway")
STORY = (test_belvedere, test_faults, test_horizontal_scaling, test_nothing_left)
UNUSED: set[Right] = {
    # Asked only by clusters that enforce who may block an owner's deletion, such as OpenShift.
    *(("belvedere.dev", f"{plural}/finalizers", "update") for plural in ("trainingruns", "modelversions")),
    *(("belvedere.dev", f"{plural}/finalizers", "update") for plural in ("engines", "modelservices")),
    ("ray.io", "rayservices/finalizers", "update"),
    ("apps", "deployments/finalizers", "update"),
    # Of what a service may ask for no more: tests/helm does.
    ("policy", "poddisruptionbudgets", "delete"),
    # Asked when the network policies are switched off.
    ("networking.k8s.io", "networkpolicies", "delete"),
    # KEDA is not installed: who asks for its kind is told so.
    *(("keda.sh", "scaledobjects", verb) for verb in ("watch", "create", "patch", "delete")),
}


def asked(log: Path, user: str, until: datetime | None) -> Iterator[tuple[Right, int]]:
    """Give each request of a user, up to a moment, as the right that it needs, with the answer's code."""
    for line in log.read_text().splitlines():
        event: dict[str, Any] = json.loads(line)
        what = event.get("objectRef")
        if event["user"]["username"] != user or what is None:
            continue
        if until is not None and datetime.fromisoformat(event["requestReceivedTimestamp"]) >= until:
            continue
        resource = "/".join(filter(None, (what["resource"], what.get("subresource"))))
        code = int(event.get("responseStatus", {}).get("code", 0))
        yield (what.get("apiGroup", ""), resource, event["verb"]), code
        if event["verb"] == "patch" and code == 201:  # server-side apply of what was not there
            yield (what.get("apiGroup", ""), resource, "create"), code


def granted(release: Release, component: str) -> set[Right]:
    """Return the rights that the chart's roles give to a component."""
    roles = [one for one in yaml.safe_load_all(release.chart("template")) if one and one["kind"] == "Role"]
    rules = [
        rule
        for role in roles
        if role["metadata"]["labels"]["app.kubernetes.io/component"] == component
        for rule in role["rules"]
    ]
    return {
        (group, resource, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def used(release: Release, node: Path, component: str) -> list[tuple[Right, int]]:
    """Return what a component asked until Helm took away its roles, which it does before the pods have ended."""
    user = f"system:serviceaccount:{release.namespace}:belvedere-{component}"
    return list(asked(node / "logs" / "audit.log", user, min(release.uninstalled, default=None)))


@pytest.mark.parametrize("component", COMPONENTS)
def test_nothing_was_asked_that_the_roles_do_not_give(release: Release, node: Path, component: str) -> None:
    requests = used(release, node, component)
    assert requests
    assert {right for right, code in requests if code == 403} == set()
    assert {right for right, _ in requests} <= granted(release, component)


@pytest.mark.parametrize("component", COMPONENTS)
def test_after_the_whole_story_every_right_was_used(
    release: Release, node: Path, component: str, request: pytest.FixtureRequest
) -> None:
    told = {item.name for item in request.session.items}
    chapters = [name for module in STORY for name in vars(module)]
    untold = [name for name in chapters if name.startswith("test_") and name not in told]
    if untold:
        pytest.skip(f"the story was not told whole: {untold[0]} is not among the tests of this run")
    # What was not there, or was refused for what it said, was allowed all the same.
    unused = granted(release, component) - {right for right, code in used(release, node, component) if code != 403}
    assert unused == (UNUSED if component == "operator" else set())
