"""The images' definitions: they agree with the project, mistakes in them are found, and what they install is enough."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

import check_images
import toolchain

ROOT = Path(__file__).parent.parent.parent
GOOD = """ARG PYTHON=3.11.13-slim-bookworm
FROM docker.io/library/python:${PYTHON} AS build
ARG TORCH=2.0
COPY pyproject.toml \\
  README.md ./
FROM docker.io/library/python:${PYTHON}
COPY --from=build /opt /opt
USER 65532:65532
"""


def wrong(dockerfile: str) -> list[str]:
    return list(check_images.wrong_in_dockerfile(dockerfile, python="3.11", torch="2.0", root=ROOT))


def test_the_images_agree_with_the_project() -> None:
    assert list(check_images.everything_wrong()) == []


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("", "", None),
        ("USER 65532:65532\n", "", "runs as root"),
        ("USER 65532:65532", "USER root", "runs as root"),
        ("=3.11.13-slim-bookworm", "=latest", "name a full version"),
        ("=3.11.13-slim-bookworm", "=3.11-slim", "name a full version"),
        ("=3.11.13-slim-bookworm", "=3.12.1-slim-bookworm", "pinned for Python 3.11"),
        ("docker.io/library/", "", "write the registry"),
        ("README.md", "READYOU.md", "READYOU.md does not exist"),
        ("--from=build", "--from=built", "no stage built"),
        ("TORCH=2.0", "TORCH=2.1", "requirements/lock.txt has 2.0"),
    ],
)
def test_mistakes_are_found(old: str, new: str, says: str | None) -> None:
    found = wrong(GOOD.replace(old, new) if old else GOOD)
    assert found == [] if says is None else says in found[0]


def test_a_stage_on_another_keeps_its_user() -> None:
    assert wrong(GOOD.replace("\nFROM docker.io/library/python:${PYTHON}\n", "\nFROM build AS final\n")) == []
    based = GOOD.replace("COPY --from", "USER 65532:65532\nCOPY --from").replace("/opt\nUSER 65532:65532\n", "/opt\n")
    assert wrong(based) == []


def test_other_versions_than_the_locks_are_found() -> None:
    assert list(check_images.wrong_pins("x", {"torch": "1", "s3fs": "1"}, {"torch": "2"})) == [
        "requirements/images/x.txt has torch 1, requirements/lock.txt 2: run  make lock"
    ]
    assert list(check_images.wrong_names("x.in", "# c\n-r y.in\nray[serve]\nleft-pad==1\n", frozenset({"ray"}))) == [
        "deploy/images/x.in asks for left-pad, which pyproject.toml does not"
    ]


def test_the_operator_is_told_the_toolchain_of_the_lock(tmp_path: Path) -> None:
    from belvedere_operators.controllers.context import installed_toolchain

    told = toolchain.toolchain((ROOT / "requirements" / "lock.txt").read_text())
    assert told == {name: version(name) for name in toolchain.PACKAGES}
    file = tmp_path / "toolchain.json"
    file.write_text(json.dumps(told | {"torch": "9"}))
    assert installed_toolchain({"BELVEDERE_TOOLCHAIN": str(file)}) == told | {"torch": "9"}
    # Whoever builds for LiteRT does so beside the images.
    assert installed_toolchain({}) == told | {"ai-edge-litert": version("ai-edge-litert")}


IMPORTS = {
    "operator": "belvedere_operators.controlplane.cluster, belvedere_operators.controllers.modelservice.controller,"
    "belvedere_operators.alerts.webhook, belvedere_platform.store.kubernetes, s3fs",
    "gateway": "belvedere_serving.gateway.serve, belvedere_serving.gateway.bootstrap, belvedere_platform.store.kubernetes",
    "server": "belvedere_serving.server.app, belvedere_serving.server.grpc_service, belvedere_serving.server.bare, s3fs",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", IMPORTS)
def test_what_an_image_installs_is_enough(name: str, tmp_path: Path) -> None:
    """As the Dockerfile does it, with the same tool, into an environment of its own. The trainer's is all that is installed here."""
    cache = Path(os.environ.get("BELVEDERE_CACHE", Path.home() / ".cache" / "belvedere"))
    uv, environment = cache / "tools" / "uv" / "bin" / "uv", tmp_path / "venv"
    if not uv.exists():
        pytest.skip("uv is not set up: make setup")

    def run(*words: Any) -> subprocess.CompletedProcess[str]:
        variables = {**os.environ, "UV_CACHE_DIR": str(cache / "uv")}
        return subprocess.run([str(word) for word in words], env=variables, capture_output=True, text=True, timeout=300)

    def done(*words: Any) -> str:
        finished = run(*words)
        assert finished.returncode == 0, finished.stderr
        return finished.stdout

    done(uv, "venv", "-q", "--python", sys.executable, environment)
    requirements = ROOT / "requirements" / "images" / f"{name}.txt"
    install = (uv, "pip", "install", "-q", "--python", environment, "--no-deps")
    got = run(*install, "--require-hashes", "-r", requirements)
    if got.returncode and "error sending request" in got.stderr:
        pytest.skip("the package index cannot be reached")
    assert got.returncode == 0, got.stderr
    done(*install, ROOT)
    done(environment / "bin" / "python", "-c", f"import {IMPORTS[name]}")
    assert "Usage: belvedere" in done(environment / "bin" / "belvedere", "--help")
