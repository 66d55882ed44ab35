"""ModelVersions over the real stores: present, missing, damaged, of the wrong kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from belvedere_operators.controllers.modelversion.controller import ModelVersionReconciler
from belvedere_operators.runtime import After, Key
from belvedere_platform.errors import InvalidInput
from belvedere_platform.store.kinds import MODEL_VERSION

KEY = Key("default", "v1")


async def make(bench: Any, digest: str) -> ModelVersionReconciler:
    await bench.apply("ModelVersion", "v1", {"model": "clip", "digest": digest, "evaluation": {"passed": True}})
    return ModelVersionReconciler(bench.context)


async def ready(bench: Any) -> tuple[str, str, str]:
    return tuple(await bench.condition(MODEL_VERSION, "v1", "Ready"))  # type: ignore[return-value]


async def test_a_whole_artifact_is_ready(bench: Any) -> None:
    pushed = bench.artifacts.push("model", {"model.safetensors": b"weights"}, config={})
    reconciler = await make(bench, pushed.digest)
    assert await reconciler.reconcile(KEY) == After(600.0)
    assert (await ready(bench))[:2] == ("True", "Verified")
    assert (await bench.status(MODEL_VERSION, "v1"))["sizeBytes"] == 7
    await reconciler.reconcile(KEY)
    assert await bench.events() == [("Normal", "Verified", 1)]


async def test_a_missing_artifact_is_waited_for(bench: Any) -> None:
    reconciler = await make(bench, "sha256:" + "0" * 64)
    assert await reconciler.reconcile(KEY) == After(10.0)
    assert (await ready(bench))[:2] == ("False", "ArtifactNotFound")


async def test_a_damaged_artifact_is_not_ready(bench: Any) -> None:
    pushed = bench.artifacts.push("model", {"model.safetensors": b"weights"}, config={})
    blobs = Path(bench.artifacts.url.removeprefix("file://")) / "blobs/sha256"
    (blobs / pushed.files[0].digest[7:]).write_bytes(b"wEights")
    reconciler = await make(bench, pushed.digest)
    await reconciler.reconcile(KEY)
    status, reason, message = await ready(bench)
    assert (status, reason) == ("False", "CorruptArtifact")
    assert "model.safetensors" in message
    bench.artifacts.push("model", {"model.safetensors": b"weights"}, config={})
    await reconciler.reconcile(KEY)
    assert (await ready(bench))[0] == "True"


async def test_an_artifact_that_vanishes_is_noticed(bench: Any) -> None:
    pushed = bench.artifacts.push("model", {"model.safetensors": b"weights"}, config={})
    reconciler = await make(bench, pushed.digest)
    await reconciler.reconcile(KEY)
    bench.artifacts.collect_garbage([])
    await reconciler.reconcile(KEY)
    assert (await ready(bench))[:2] == ("False", "ArtifactNotFound")


async def test_a_data_set_is_not_a_model(bench: Any) -> None:
    pushed = bench.artifacts.push("dataset", {"a": b""}, config={})
    reconciler = await make(bench, pushed.digest)
    await reconciler.reconcile(KEY)
    assert "is the artifact of a dataset, not of a model" in (await ready(bench))[2]


async def test_a_version_cannot_change(bench: Any) -> None:
    await make(bench, "sha256:" + "0" * 64)
    with pytest.raises(InvalidInput, match="immutable"):
        await make(bench, "sha256:" + "1" * 64)
