"""Two teams on a real API server: each may do its work, and neither sees the other."""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

TEAM = Path(__file__).parent.parent.parent / "deploy" / "tenancy" / "team.yaml"

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

Ask = Callable[..., str]


@pytest.fixture(scope="module")
def teams(kubeconfig: Path) -> Iterator[tuple[Ask, str, str]]:
    """kubectl, and the names of two teams of this test's own."""
    mark = uuid.uuid4().hex[:6]

    def kubectl(*words: str, given: str | None = None) -> str:
        command = ["kubectl", "--kubeconfig", str(kubeconfig), *words]
        done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=120)
        return done.stdout if done.returncode == 0 else f"{done.stdout}{done.stderr}"

    one, two = f"team-{mark}-a", f"team-{mark}-b"
    for team in (one, two):
        said = kubectl("apply", "--server-side", "-f", "-", given=TEAM.read_text().replace("team-a", team))
        assert said.count("serverside-applied") == 6, said
    yield kubectl, one, two
    kubectl("delete", "--wait=false", "namespace", one, two)


def may(ask: Ask, team: str, verb: str, resource: str, namespace: str) -> bool:
    # To kubectl, pods/log would be the pod named log.
    kind, _, part = resource.partition("/")
    what = [verb, kind, *([f"--subresource={part}"] if part else [])]
    answer = ask("auth", "can-i", *what, "-n", namespace, "--as=somebody", f"--as-group={team}")
    return answer.split()[0] == "yes"


@pytest.mark.parametrize(
    ("verb", "resource"),
    [("create", "modelservices.belvedere.dev"), ("list", "trainingruns.belvedere.dev"), ("get", "pods/log")],
)
def test_a_team_does_its_work_and_sees_no_other(teams: tuple[Ask, str, str], verb: str, resource: str) -> None:
    ask, one, two = teams
    assert may(ask, one, verb, resource, one)
    assert not may(ask, one, verb, resource, two)
    assert not may(ask, two, verb, resource, one)


@pytest.mark.parametrize(
    ("verb", "resource"),
    [
        ("get", "secrets"),
        ("create", "pods"),
        ("create", "modelversions.belvedere.dev"),
        ("patch", "rayservices.ray.io"),
        ("patch", "modelservices.belvedere.dev/status"),
        ("delete", "resourcequotas"),
    ],
)
def test_what_is_the_operators_or_the_administrators_stays_so(
    teams: tuple[Ask, str, str], verb: str, resource: str
) -> None:
    ask, one, _ = teams
    assert not may(ask, one, verb, resource, one)
