"""The command line over a temporary home."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import click.testing
import pytest

from belvedere_platform.artifacts import ArtifactStore
from belvedere_platform.cli.main import cli
from belvedere_platform.store import Kind, Manifest
from belvedere_platform.store.embedded import EmbeddedStore

RUN = """
apiVersion: belvedere.dev/v1alpha1
kind: TrainingRun
metadata: {name: clip-v1, labels: {team: search}}
spec:
  model: clip
  data: {dataset: emoji}
  optimization: {pairs: 1000}
"""


class Terminal:
    """Runs `belvedere WORDS` against one home."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.artifacts = ArtifactStore(str(home / "artifacts"))

    def run(self, *words: str, stdin: str | None = None, code: int = 0) -> click.testing.Result:
        """Run a verb and check its exit code; errors must be one line without a traceback."""
        result = click.testing.CliRunner().invoke(cli, ["--home", str(self.home), *words], input=stdin)
        assert result.exit_code == code, result.output
        if code:
            assert result.stderr.count("\n") == 1, result.stderr
            assert result.stderr.startswith("error: ")
        return result

    def out(self, *words: str, stdin: str | None = None) -> str:
        return self.run(*words, stdin=stdin).stdout

    def json(self, *words: str) -> Any:
        return json.loads(self.out(*words, "-o", "json"))

    def error(self, code: int, *words: str, stdin: str | None = None) -> str:
        return self.run(*words, stdin=stdin, code=code).stderr.removeprefix("error: ").rstrip("\n")

    def write(self, name: str, text: str) -> str:
        path = self.home.parent / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return str(path)

    def put(self, *manifests: Manifest) -> list[Manifest]:
        """Write objects straight into the store, status too."""

        async def write() -> list[Manifest]:
            store = EmbeddedStore(self.home / "store.db")
            try:
                applied = []
                for manifest in manifests:
                    body = {key: value for key, value in manifest.items() if key != "status"}
                    metadata = {"namespace": "default", **body["metadata"]}
                    applied.append(await store.apply({**body, "metadata": metadata}, field_manager="test"))
                    if "status" in manifest:
                        identity = {"name": metadata["name"], "namespace": metadata["namespace"]}
                        await store.apply_status({**manifest, "metadata": identity}, field_manager="test")
                return applied
            finally:
                await store.close()

        return asyncio.run(write())

    def get(self, kind: Kind, name: str) -> Manifest:
        async def read() -> Manifest:
            store = EmbeddedStore(self.home / "store.db")
            try:
                return await store.get(kind, name, "default")
            finally:
                await store.close()

        return asyncio.run(read())


@pytest.fixture
def terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Terminal:
    for name in ("BELVEDERE_HOME", "BELVEDERE_STORE", "BELVEDERE_ARTIFACTS"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "home").mkdir()
    return Terminal(tmp_path / "home")


@pytest.fixture
def run_yaml() -> str:
    """One valid TrainingRun."""
    return RUN
