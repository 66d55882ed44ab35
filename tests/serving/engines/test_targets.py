"""Which engines a target can mean, the runtimes beside ONNX Runtime, and the choice that `auto` makes."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from belvedere_platform.artifacts import ArtifactKind, ArtifactStore
from belvedere_platform.errors import CorruptData, InvalidInput
from belvedere_platform.protocol import EMBED_IMAGE, EMBED_TEXT, EMBEDDING
from belvedere_platform.resources.engine import EngineStatus, EngineTarget, ParityGate
from belvedere_serving.engines.artifacts import resolve_as
from belvedere_serving.engines.build import EngineResult, build
from belvedere_serving.engines.device import Device
from belvedere_serving.engines.loading import ENGINE_FILE, load_runtime, read_variant
from belvedere_serving.engines.measure import CURVE_BATCHES
from belvedere_serving.engines.runtime import TOWER_INPUT, Variant
from belvedere_serving.engines.source import TorchRuntime, read_held_out
from belvedere_serving.engines.targets import check_target, variants_of

OLD, ARM = Device("old", ("avx2",)), Device("arm", ("asimddp", "i8mm", "bf16"))
NEW = Device("new", ("avx2", "avx512f", "avx512_vnni", "avx512_bf16"))


def names(device: Device, **target: str) -> set[str]:
    return {str(one) for one in variants_of(EngineTarget.model_validate(target), device)}


@pytest.mark.parametrize(
    ("device", "target", "expected"),
    [
        (OLD, {}, {"onnxruntime fp32"}),
        (OLD, {"runtime": "auto"}, {"onnxruntime fp32", "openvino fp32", "torch fp32"}),
        (OLD, {"runtime": "auto", "precision": "int8"}, {"onnxruntime int8", "openvino int8"}),
        (NEW, {"runtime": "auto", "precision": "bf16"}, {"openvino bf16"}),
        (ARM, {"runtime": "onnxruntime", "precision": "bf16"}, {"onnxruntime bf16"}),
    ],
)
def test_a_target_means_what_the_processor_can_run(device: Device, target: dict[str, str], expected: set[str]) -> None:
    assert names(device, **target) == expected


def test_auto_takes_a_new_number_format_into_account() -> None:
    everything = {"runtime": "auto", "precision": "auto"}
    assert names(NEW, **everything) - names(OLD, **everything) == {"openvino bf16"}


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ({"runtime": "onnxruntime", "precision": "bf16"}, "needs an Arm processor with bf16"),
        ({"runtime": "torch", "precision": "int8"}, "torch has no such engine, only fp32"),
        ({"runtime": "tensorrt", "precision": "fp16", "device": "gpu"}, "needs the package tensorrt and an NVIDIA GPU"),
    ],
)
def test_what_cannot_be_built_is_refused_with_what_is_missing(target: dict[str, str], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        variants_of(EngineTarget.model_validate(target), OLD)


def test_an_engine_that_does_not_say_what_it_is_is_refused(tmp_path: Path) -> None:
    (tmp_path / ENGINE_FILE).write_text("{}")
    with pytest.raises(CorruptData, match="does not say what the engine is"):
        read_variant(tmp_path)
    (tmp_path / ENGINE_FILE).write_text('{"runtime": "steam", "precision": "fp32"}')
    with pytest.raises(CorruptData, match="runtime steam; known are onnxruntime"):
        load_runtime(tmp_path, (EMBED_TEXT,), threads=1)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ArtifactStore:
    return ArtifactStore(tmp_path_factory.mktemp("artifacts").as_uri())


@pytest.fixture(scope="module")
def model(store: ArtifactStore, stand_in: ModuleType) -> str:
    return str(stand_in.push(store))


@pytest.fixture(scope="module")
def automatic(store: ArtifactStore, model: str) -> EngineResult:
    gate = ParityGate(cosine_minimum=0.9, top1_agreement_minimum=0.0)
    return build(store, model, EngineTarget(runtime="auto", precision="auto"), gate)


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["openvino", "torch"])
def test_another_runtime_gives_the_answers_of_torch(
    store: ArtifactStore, model: str, runtime: str, tmp_path: Path
) -> None:
    result = build(store, model, EngineTarget.model_validate({"runtime": runtime}), ParityGate())
    assert result.passed
    engine, source = store.pull(result.digest, tmp_path / "engine"), store.pull(model, tmp_path / "model")
    assert read_variant(engine) == Variant(runtime, "fp32")
    loaded, torch = load_runtime(engine, (EMBED_TEXT, EMBED_IMAGE), threads=1), TorchRuntime(source)
    held_out = read_held_out(source)
    for tower in (EMBED_TEXT, EMBED_IMAGE):
        arrays = {TOWER_INPUT[tower]: held_out[tower].array}
        expected = torch.run(tower, arrays)[EMBEDDING]
        first = loaded.run(tower, arrays)[EMBEDDING]
        np.testing.assert_allclose(first, expected, atol=1e-5)
        # What was answered before is not written over by the next run.
        kept = first.copy()
        loaded.run(tower, {TOWER_INPUT[tower]: held_out[tower].array[::-1]})
        np.testing.assert_array_equal(first, kept)
        assert loaded.dimension(tower) == expected.shape[1]
        assert loaded.flexible(tower) == (tower == EMBED_TEXT)
    short = {TOWER_INPUT[EMBED_TEXT]: held_out[EMBED_TEXT].array[:, :8]}
    np.testing.assert_allclose(
        loaded.run(EMBED_TEXT, short)[EMBEDDING], torch.run(EMBED_TEXT, short)[EMBEDDING], atol=1e-5
    )


@pytest.mark.slow
def test_auto_measures_the_candidates_and_takes_the_fastest_that_passes(automatic: EngineResult) -> None:
    printed = automatic.as_json()
    status = EngineStatus.model_validate({key: printed[key] for key in ("digest", "chosen", "candidates", "curve")})
    assert {"onnxruntime fp32", "onnxruntime int8", "openvino fp32", "openvino int8", "torch fp32"} <= set(
        status.candidates
    )
    sums = {name: sum(report.p50_milliseconds.values()) for name, report in status.candidates.items() if report.passed}
    assert status.chosen == min(sums, key=lambda name: sums[name])


@pytest.mark.slow
def test_the_curve_goes_from_one_input_to_as_many_as_are_worth_it(automatic: EngineResult) -> None:
    for tower, sizes in ((EMBED_TEXT, (8, 12)), (EMBED_IMAGE, (32,))):
        points = automatic.config["curve"][tower]
        assert tuple(dict.fromkeys(point["size"] for point in points)) == sizes
        batches = tuple(point["batch"] for point in points if point["size"] == sizes[-1])
        assert batches == CURVE_BATCHES[: len(batches)]
        assert all(point["perSecond"] > 0 for point in points)


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_tensorrt_gives_the_answers_of_torch(store: ArtifactStore, model: str, precision: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt")
    target = EngineTarget.model_validate({"runtime": "tensorrt", "precision": precision, "device": "gpu"})
    result = build(store, model, target, ParityGate(cosine_minimum=0.98, top1_agreement_minimum=0.9))
    assert result.passed
    loaded = load_runtime(store.pull(result.digest, tmp_path / "engine"), (EMBED_TEXT, EMBED_IMAGE), threads=1)
    inputs = read_held_out(store.pull(model, tmp_path / "model"))[EMBED_IMAGE].array
    alone = loaded.run(EMBED_IMAGE, {"pixels": inputs[:1]})[EMBEDDING]
    many = loaded.run(EMBED_IMAGE, {"pixels": np.resize(inputs, (100, *inputs.shape[1:]))})[EMBEDDING]
    np.testing.assert_allclose(many[0], alone[0], atol=1e-2)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"runtime": "onnxruntime", "precision": "auto", "device": "cpu"}, "precision auto needs runtime auto"),
        ({"runtime": "tensorrt", "precision": "fp32", "device": "cpu"}, "runtime tensorrt needs device gpu"),
        ({"runtime": "openvino", "precision": "fp16", "device": "cpu"}, "precision fp16 needs device gpu"),
    ],
)
def test_the_command_line_holds_to_the_rules_of_an_engine(given: dict[str, str], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        check_target(given)
    assert check_target({**given, "runtime": "auto", "device": "gpu"}).runtime == "auto"


def test_a_model_and_an_engine_that_were_mixed_up_are_named(store: ArtifactStore, model: str) -> None:
    engine = store.push(ArtifactKind.ENGINE, {ENGINE_FILE: b"{}"}, config={}, tag="engines/mine")
    with pytest.raises(InvalidInput, match=r"models/v1 is a model, and an engine is wanted; build one of it"):
        resolve_as(ArtifactKind.ENGINE, store, "models/v1")
    with pytest.raises(InvalidInput, match=r"engines/mine is an engine, and a model is wanted; it names its model"):
        build(store, "engines/mine", EngineTarget(), ParityGate())
    assert resolve_as(ArtifactKind.ENGINE, store, "engines/mine").digest == engine.digest
