"""LiteRT: what is not set up is said, what cannot be converted is said, and what can be answers as torch does."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from belvedere_platform.artifacts import ArtifactStore
from belvedere_platform.errors import InvalidInput, Unavailable
from belvedere_platform.protocol import EMBED_TEXT, EMBEDDING
from belvedere_platform.resources.engine import EngineTarget
from belvedere_serving.engines import litert, targets
from belvedere_serving.engines.device import Device
from belvedere_serving.engines.export import ExportFailed
from belvedere_serving.engines.loading import ENGINE_FILE, engine_json, load_runtime
from belvedere_serving.engines.runtime import TOWER_INPUT, Variant
from belvedere_serving.engines.source import TorchRuntime, read_held_out
from belvedere_serving.triton.options import RepositoryOptions
from belvedere_serving.triton.repository import write_repository

TOKENS = np.zeros((1, 8), np.int64)


@pytest.fixture
def converter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Sets up a converter that runs a line of shell."""

    def made(line: str) -> Path:
        folder = tmp_path / "converter"
        (folder / "bin").mkdir(parents=True)
        (folder / "bin" / "python").write_text(f"#!/bin/sh\n{line}\n")
        (folder / "bin" / "python").chmod(0o755)
        (folder / "ready").write_text("one\n")
        monkeypatch.setenv("BELVEDERE_LITERT", str(folder))
        return folder

    return made


def test_without_a_converter_it_is_said_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BELVEDERE_LITERT", str(tmp_path / "nothing"))
    with pytest.raises(InvalidInput, match=r"litert fp32 needs the package ai-edge-litert .*`make litert`"):
        targets.variants_of(EngineTarget(runtime="litert"), Device("old", ("avx2",)))
    with pytest.raises(Unavailable, match=r"`make litert` does it"):
        litert.convert(tmp_path / "a.pt2", EMBED_TEXT, tmp_path / "a.tflite", "fp32", TOKENS)
    assert litert.converter_version() == ""


def test_auto_never_means_it(converter: Callable[[str], Path]) -> None:
    converter("true")
    everything = targets.variants_of(EngineTarget(runtime="auto", precision="auto"), Device("old", ("avx2",)))
    assert "litert" not in {one.runtime for one in everything}
    assert litert.converter_version() == "one"


def test_what_the_converter_says_is_in_the_error(converter: Callable[[str], Path], tmp_path: Path) -> None:
    converter("echo 'no lowering for aten.strange' >&2; exit 1")
    with pytest.raises(ExportFailed, match=r"embed_text cannot be expressed in LiteRT: no lowering for aten\.strange"):
        litert.convert(tmp_path / "a.pt2", EMBED_TEXT, tmp_path / "a.tflite", "fp32", TOKENS)


def test_triton_is_given_no_such_engine(tmp_path: Path) -> None:
    engine = tmp_path / "engine"
    engine.mkdir()
    (engine / ENGINE_FILE).write_bytes(engine_json(Variant("litert", "fp32"), {}))
    with pytest.raises(InvalidInput, match="Triton has no backend for LiteRT"):
        write_repository(engine, tmp_path / "repository", RepositoryOptions(version="a-v1"))


@pytest.mark.slow
@pytest.mark.skipif(
    litert.find_converter() is None or find_spec("ai_edge_litert") is None, reason="LiteRT is not set up: make litert"
)
def test_a_converted_tower_answers_as_torch_does(tmp_path: Path, stand_in: ModuleType) -> None:
    store = ArtifactStore((tmp_path / "artifacts").as_uri())
    source = store.pull(str(stand_in.push(store)), tmp_path / "model")
    tokens = read_held_out(source)[EMBED_TEXT].array
    litert.convert(source / f"{EMBED_TEXT}.pt2", EMBED_TEXT, source / f"{EMBED_TEXT}.tflite", "int8", tokens[:1])
    (source / ENGINE_FILE).write_bytes(engine_json(Variant("litert", "int8"), {}))
    given = {TOWER_INPUT[EMBED_TEXT]: tokens}
    loaded = load_runtime(source, (EMBED_TEXT,), threads=1)
    expected = TorchRuntime(source).run(EMBED_TEXT, given)[EMBEDDING]
    first = loaded.run(EMBED_TEXT, given)[EMBEDDING]
    assert np.einsum("ne,ne->n", first, expected).min() > 0.999  # unit vectors
    kept = first.copy()
    loaded.run(EMBED_TEXT, {TOWER_INPUT[EMBED_TEXT]: tokens[::-1]})
    np.testing.assert_array_equal(first, kept)
    assert loaded.dimension(EMBED_TEXT) == expected.shape[1]
    assert not loaded.flexible(EMBED_TEXT)
