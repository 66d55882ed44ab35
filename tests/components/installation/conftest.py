"""One installation, started as a user starts it, on ports that were free a moment ago."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from belvedere_operators.controlplane.installation import DEFAULT_PORTS, Installation, load_installation
from belvedere_operators.executors.identity import find_instance
from belvedere_platform.errors import NotFound
from belvedere_platform.ports import free_ports
from belvedere_platform.store import Kind, Manifest
from belvedere_platform.store.embedded import EmbeddedStore

APPLICATION = """
import os
from ray import serve

@serve.deployment(ray_actor_options={"num_cpus": 0.1})
class V2Server:
    def __init__(self, word):
        self.word = word
    async def __call__(self, request):
        return {"pid": os.getpid(), "word": self.word}

def build(args):
    return V2Server.bind(args["word"])
"""


def chosen_ports() -> dict[str, int]:
    """Return a free port for each name."""
    return dict(zip(DEFAULT_PORTS, free_ports(len(DEFAULT_PORTS)), strict=True))


def belvedere(*words: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("BELVEDERE_")}
    program = str(Path(sys.executable).parent / "belvedere")
    done = subprocess.run(
        [program, *words], capture_output=True, text=True, check=False, env=inherited | environment, timeout=300
    )
    assert not check or done.returncode == 0, done.stderr
    return done


def port_flags(ports: dict[str, int]) -> list[str]:
    """Return the flags of `belvedere up`, one for the gateway and one for the others."""
    others = ",".join(f"{name}={number}" for name, number in ports.items() if name != "gateway")
    return ["--gateway-port", str(ports["gateway"]), "--port", others]


@dataclass(kw_only=True)
class Running:
    """What a test needs of the installation."""

    installation: Installation
    modules: Path
    """A directory on the PYTHONPATH of the Serve applications."""

    def get_json(self, port: str, path: str) -> Any:
        """GET from a part."""
        answer = httpx.get(self.installation.url(port) + path, timeout=60, trust_env=False)
        answer.raise_for_status()
        return answer.json()

    def apply(self, manifest: Manifest) -> None:
        """Apply as a user does."""

        async def work() -> None:
            store = EmbeddedStore(self.installation.home / "store.db")
            try:
                await store.apply(manifest, field_manager="test")
            finally:
                await store.close()

        asyncio.run(work())

    def delete(self, kind: Kind, name: str) -> None:
        """Delete as a user does."""

        async def work() -> None:
            store = EmbeddedStore(self.installation.home / "store.db")
            try:
                await store.delete(kind, name, "default")
            finally:
                await store.close()

        asyncio.run(work())

    def until(
        self, kind: Kind, name: str, holds: Callable[[Manifest], Any], *, timeout_seconds: float = 180
    ) -> Manifest:
        """Wait until an object is as wished."""
        seen: Manifest = {}

        async def work() -> Manifest:
            nonlocal seen
            store = EmbeddedStore(self.installation.home / "store.db")
            try:
                async with asyncio.timeout(timeout_seconds):
                    while True:
                        listing = await store.list(kind, "default")
                        for item in listing.items:
                            if item["metadata"]["name"] == name:
                                seen = item
                                if holds(item):
                                    return item
                        async for _ in store.watch(kind, "default", resource_version=listing.resource_version):
                            break
            finally:
                await store.close()

        try:
            return asyncio.run(work())
        except TimeoutError:
            raise AssertionError(f"{kind.kind} {name} did not become as wished: {seen.get('status')}") from None

    def exists(self, kind: Kind, name: str) -> bool:
        """Say whether an object is there."""

        async def work() -> bool:
            store = EmbeddedStore(self.installation.home / "store.db")
            try:
                await store.get(kind, name, "default")
            except NotFound:
                return False
            finally:
                await store.close()
            return True

        return asyncio.run(work())

    def identities(self) -> dict[str, str]:
        """Return what runs in each slot."""
        return {
            path.parent.name: path.read_text() for path in (self.installation.home / "processes").glob("*/identity")
        }


def eventually(look: Callable[[], Any], *, timeout_seconds: float = 60) -> Any:
    """Look until something is there; for what other programs do, which send no event."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        try:
            if found := look():
                return found
        except httpx.HTTPError as error:
            found = error
        assert time.monotonic() < deadline, f"it did not happen: {found!r}"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    for program in ("prometheus", "promtool"):
        if shutil.which(program, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}") is None:
            pytest.skip(f"{program} is not installed")
    home = tmp_path_factory.mktemp("installation") / "home"
    modules = tmp_path_factory.mktemp("modules")
    (modules / "trivial_application.py").write_text(APPLICATION)
    ports = chosen_ports()
    try:
        belvedere("up", "--home", str(home), *port_flags(ports))
        installation = load_installation(home)
        assert installation is not None
        yield Running(installation=installation, modules=modules)
    finally:
        belvedere("down", "--home", str(home))
    assert find_instance(installation.instance) == set()


def ray_service(running: Running, name: str, *, word: str = "one", replicas: int = 1) -> Manifest:
    """Return a RayService of the trivial application."""
    application = {
        "name": "any",
        "route_prefix": "/",
        "import_path": "trivial_application:build",
        "args": {"word": word},
        "runtime_env": {"env_vars": {"PYTHONPATH": str(running.modules)}},
        "deployments": [{"name": "V2Server", "num_replicas": replicas, "graceful_shutdown_timeout_s": 1}],
    }
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"serveConfigV2": json.dumps({"applications": [application]})},
    }
