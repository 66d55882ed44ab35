"""Engines are built from a model artifact, measured, pushed whatever the figures, and found again."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from click.testing import CliRunner

from belvedere_platform.artifacts import ArtifactKind, ArtifactStore
from belvedere_platform.errors import CorruptData
from belvedere_platform.protocol import EMBED_IMAGE, EMBED_TEXT, EMBEDDING
from belvedere_platform.resources.engine import EngineStatus, EngineTarget, ParityGate
from belvedere_serving.commands.engine import engine as engine_command
from belvedere_serving.engines import measure
from belvedere_serving.engines.build import EngineResult, build
from belvedere_serving.engines.export import ExportFailed, export
from belvedere_serving.engines.runtime import OnnxRuntime
from belvedere_serving.engines.source import TorchRuntime, read_held_out

pytestmark = pytest.mark.slow
LOOSE = ParityGate(cosine_minimum=0.9, top1_agreement_minimum=0.0)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ArtifactStore:
    return ArtifactStore(tmp_path_factory.mktemp("artifacts").as_uri())


@pytest.fixture(scope="module")
def model(store: ArtifactStore, stand_in: ModuleType) -> str:
    return str(stand_in.push(store))


@pytest.fixture(scope="module")
def fp32(store: ArtifactStore, model: str) -> EngineResult:
    return build(store, model, EngineTarget(), ParityGate())


def test_an_fp32_engine_gives_the_answers_of_torch(
    store: ArtifactStore, model: str, fp32: EngineResult, tmp_path: Path
) -> None:
    engine, source = store.pull(fp32.digest, tmp_path / "engine"), store.pull(model, tmp_path / "model")
    runtime = OnnxRuntime({tower: engine / f"{tower}.onnx" for tower in (EMBED_TEXT, EMBED_IMAGE)})
    torch, held_out = TorchRuntime(source), read_held_out(source)
    for tower, name in ((EMBED_TEXT, "tokens"), (EMBED_IMAGE, "pixels")):
        arrays = {name: held_out[tower].array}
        np.testing.assert_allclose(
            runtime.run(tower, arrays)[EMBEDDING], torch.run(tower, arrays)[EMBEDDING], atol=1e-5
        )
    assert fp32.passed


def test_the_result_is_what_the_status_of_an_engine_holds(store: ArtifactStore, fp32: EngineResult) -> None:
    printed = fp32.as_json()
    wanted = ("digest", "parity", "latency", "toolchain", "device", "sizeBytes")
    status = EngineStatus.model_validate({key: printed[key] for key in wanted})
    assert status.parity["embed_text"].samples == 12
    assert status.latency["embed_image"].torch_p50_milliseconds > 0
    assert set(store.config(fp32.digest)) >= {"modelDigest", "target", "parity", "latency", "toolchain", "device"}


def test_texts_are_as_near_in_every_length_and_short_ones_are_run_short(
    store: ArtifactStore, model: str, fp32: EngineResult, tmp_path: Path
) -> None:
    shown = fp32.config["methods"]["embed_text"]["fp32"]["cosineMinByLength"]
    assert set(shown) == {"8", "12"}
    assert min(shown.values()) == pytest.approx(1, abs=1e-6)
    runtime = OnnxRuntime({EMBED_TEXT: store.pull(fp32.digest, tmp_path / "engine") / "embed_text.onnx"})
    held_out = read_held_out(store.pull(model, tmp_path / "model"))[EMBED_TEXT]
    assert runtime.flexible(EMBED_TEXT)
    assert held_out.lengths is not None
    assert set(held_out.lengths.tolist()) == {8}
    short = measure.embed(runtime, EMBED_TEXT, held_out.array, held_out.lengths)
    np.testing.assert_allclose(short, measure.embed(runtime, EMBED_TEXT, held_out.array), atol=1e-6)


def test_a_model_that_takes_texts_of_one_length_is_built_and_run_in_it(
    store: ArtifactStore, stand_in: ModuleType, tmp_path: Path
) -> None:
    result = build(store, stand_in.push(store, flexible=False, seed=5), EngineTarget(), ParityGate())
    assert result.passed
    assert "cosineMinByLength" not in result.config["methods"]["embed_text"]["fp32"]
    runtime = OnnxRuntime({EMBED_TEXT: store.pull(result.digest, tmp_path / "engine") / "embed_text.onnx"})
    assert not runtime.flexible(EMBED_TEXT)


def test_an_int8_engine_is_the_fastest_that_is_near_enough(store: ArtifactStore, model: str) -> None:
    result = build(store, model, EngineTarget(precision="int8"), LOOSE)
    assert result.passed
    for tower in (EMBED_TEXT, EMBED_IMAGE):
        methods = result.config["methods"][tower]
        chosen = [figures for figures in methods.values() if figures["chosen"]]
        near = [figures for figures in methods.values() if figures["cosineMin"] >= 0.9]
        assert len(chosen) == 1
        assert chosen[0]["p50Milliseconds"] == min(figures["p50Milliseconds"] for figures in near)


def test_an_engine_that_is_there_is_found_again(store: ArtifactStore, model: str, fp32: EngineResult) -> None:
    said: list[str] = []
    again = build(store, model, EngineTarget(), ParityGate(cosine_minimum=0.5), tag="engines/mine", say=said.append)
    assert (again.reused, again.digest) == (True, fp32.digest)
    assert store.resolve("engines/mine").digest == fp32.digest
    assert "is there already" in said[0]


def test_an_engine_that_fails_parity_is_pushed_with_its_figures(store: ArtifactStore, model: str) -> None:
    strict = ParityGate(cosine_minimum=1.0, top1_agreement_minimum=1.0)
    result = build(store, model, EngineTarget(precision="int8"), strict)
    assert not result.passed
    assert store.config(result.digest)["parity"]["embed_text"]["cosineMin"] < 1


def test_inputs_that_the_source_itself_cannot_answer_are_left_out(store: ArtifactStore, stand_in: ModuleType) -> None:
    broken = stand_in.push(store, num_words=stand_in.WORDS.index("tree"), seed=3)
    said: list[str] = []
    result = build(store, broken, EngineTarget(), ParityGate(), say=said.append)
    assert result.passed
    assert result.config["parity"]["embed_text"]["samples"] == 8
    assert any("fails on 4 of 12" in line for line in said)


def test_a_model_without_programs_is_refused_by_name(store: ArtifactStore) -> None:
    digest = store.push(ArtifactKind.MODEL, {"tokenizer.json": b"{}"}, config={"model": "m", "version": "v"}).digest
    with pytest.raises(CorruptData, match=r"lacks embed_text\.pt2, embed_image\.pt2"):
        build(store, digest, EngineTarget(), ParityGate())


def test_a_program_for_one_batch_size_is_refused(stand_in: ModuleType, tmp_path: Path) -> None:
    import torch

    program = torch.export.export(stand_in.ImageTower().eval(), (torch.zeros(2, 3, stand_in.SIZE, stand_in.SIZE),))
    with pytest.raises(ExportFailed, match="batch of 2 only"):
        export(program, EMBED_IMAGE, tmp_path / "x.onnx")


def test_the_command_prints_one_json_document(store: ArtifactStore, model: str, fp32: EngineResult) -> None:
    arguments = ["build", "--model-digest", model, "--artifacts", store.url, "--tag", "engines/by-hand"]
    result = CliRunner().invoke(engine_command, arguments)
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    assert (printed["digest"], printed["reused"], printed["passed"]) == (fp32.digest, True, True)
    assert "reused" in result.stderr


def test_the_bench_command_times_an_engine_beside_torch(store: ArtifactStore, fp32: EngineResult) -> None:
    result = CliRunner().invoke(
        engine_command, ["bench", fp32.digest, "--rounds", "1", "--repeats", "2", "--artifacts", store.url]
    )
    assert result.exit_code == 0, result.output
    latency = json.loads(result.stdout)["latency"]
    assert all(latency[tower]["p50Milliseconds"] > 0 for tower in (EMBED_TEXT, EMBED_IMAGE))


def test_measuring_embeds_in_batches_what_it_embeds_at_once(
    store: ArtifactStore, fp32: EngineResult, model: str, tmp_path: Path
) -> None:
    engine = store.pull(fp32.digest, tmp_path / "engine")
    inputs = read_held_out(store.pull(model, tmp_path / "model"))[EMBED_TEXT].array
    runtime = OnnxRuntime({EMBED_TEXT: engine / "embed_text.onnx"})
    np.testing.assert_allclose(
        measure.embed(runtime, EMBED_TEXT, inputs, batch=5), measure.embed(runtime, EMBED_TEXT, inputs), atol=1e-6
    )
