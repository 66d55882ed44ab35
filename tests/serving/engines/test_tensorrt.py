"""What TensorRT is given: models that it reads and compiles, and where it notes what it timed.

The compiler is that of TensorRT for RTX, which needs no GPU to compile; nothing here runs a plan.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest

from belvedere_platform.artifacts import ArtifactStore
from belvedere_platform.protocol import EMBED_IMAGE, EMBED_TEXT, EMBEDDING
from belvedere_platform.resources.engine import ParityGate
from belvedere_serving.engines import measure, quantize, tensorrt
from belvedere_serving.engines.compiling import TOWERS, Bench, onnx_model, prepare, tensorrt_plan
from belvedere_serving.engines.device import Device, parse_driver
from belvedere_serving.engines.runtime import TOWER_INPUT, OnnxRuntime

GPU = Device("NVIDIA L4", ("sm_89", "driver 580.95.05"), "gpu")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, stand_in: ModuleType) -> Bench:
    store = ArtifactStore(tmp_path_factory.mktemp("artifacts").as_uri())
    model, folder = store.resolve(stand_in.push(store)), tmp_path_factory.mktemp("scratch")
    return prepare(store, model, folder, ParityGate(), GPU, lambda message: None)


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    rtx = pytest.importorskip("tensorrt_rtx_bindings")
    monkeypatch.setattr(tensorrt, "_library", lambda: rtx)


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
@pytest.mark.filterwarnings("ignore:.*Timing cache operations are no-ops in TensorRT-RTX:DeprecationWarning")
@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("method", ["fp32", "fp16", *quantize.methods(EMBED_TEXT, "tensorrt")])
def test_each_precision_is_compiled_and_what_was_timed_is_kept(
    bench: Bench, tower: str, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BELVEDERE_CACHE", str(tmp_path))
    assert tensorrt_plan(bench, tower, method).stat().st_size > 0
    (kept,) = tmp_path.glob("tensorrt/*")
    assert kept.suffix == ".timing"
    kept.write_bytes(b"of another version")
    tensorrt_plan(bench, tower, method)
    assert kept.read_bytes() != b"of another version"


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_what_it_cannot_read_is_named(bench: Bench, tmp_path: Path) -> None:
    unsigned = onnx_model(bench, EMBED_IMAGE, "static-products")
    with pytest.raises(
        tensorrt.BuildFailed, match=r"cannot read embed_image-static-products\.onnx: .*DequantizeLinear"
    ):
        tensorrt.build_plan(unsigned, tmp_path / "plan", (3, 32, 32), tmp_path / "timing")
    assert not (tmp_path / "plan").exists()


@pytest.mark.slow
@pytest.mark.parametrize("tower", TOWERS)
def test_in_16_bits_a_model_says_nearly_the_same_and_takes_the_same(bench: Bench, tower: str) -> None:
    fp32, fp16 = (onnx_model(bench, tower, method) for method in ("fp32", "fp16"))
    whole, half = (onnx.load(file).graph for file in (fp32, fp16))
    assert half.input[0] == whole.input[0]
    assert half.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert onnx.TensorProto.FLOAT not in {weights.data_type for weights in half.initializer}
    arrays = {TOWER_INPUT[tower]: bench.inputs[tower].array}
    near = measure.cosines(
        bench.torch.run(tower, arrays)[EMBEDDING], OnnxRuntime({tower: fp16}).run(tower, arrays)[EMBEDDING]
    )
    assert float(np.min(near)) > 0.999


def test_timings_are_of_one_gpu_one_driver_and_one_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def kept(device: Device, version: str) -> Path:
        library = ModuleType("tensorrt")
        library.__version__ = version  # type: ignore[attr-defined]
        monkeypatch.setattr(tensorrt, "_library", lambda: library)
        return tensorrt.timing_cache(device, tmp_path)

    other = Device(GPU.name, ("sm_89", "driver 590.10"), "gpu")
    assert kept(GPU, "11.4") == kept(GPU, "11.4")
    assert len({kept(GPU, "11.4"), kept(GPU, "11.3"), kept(other, "11.4")}) == 3


def test_a_gpu_is_known_by_its_architecture_and_driver() -> None:
    assert str(GPU) == "gpu: NVIDIA L4 (sm_89, driver 580.95.05)"
    closed = (
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05  Tue Sep 23 10:11:16 UTC 2025\nGCC version: 12\n"
    )
    opened = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build\n"
    assert [parse_driver(text) for text in (closed, opened, "")] == ["580.95.05", "570.86.15", ""]
