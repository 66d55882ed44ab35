"""Ways to make an int8 or fp16 engine from an fp32 one. Which int8 is best depends on tower and processor, so all that apply are measured."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy.typing as npt

from belvedere_platform.protocol import EMBED_IMAGE, EMBED_TEXT
from belvedere_serving.engines.device import Device

Write = Callable[[Path, Path, Mapping[str, npt.NDArray[Any]], Device], None]
_WEIGHTED = ["Conv", "Gemm", "MatMul"]
_CHAIN = [*_WEIGHTED, "Add", "Relu", "MaxPool", "AveragePool", "GlobalAveragePool"]
_CALIBRATION_BATCH = 32


class _Calibration:
    """Feeds calibration inputs in batches; the quantizer calls `get_next` until None."""

    def __init__(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        length = len(next(iter(arrays.values())))
        self._batches = iter(
            [
                {name: array[start : start + _CALIBRATION_BATCH] for name, array in arrays.items()}
                for start in range(0, length, _CALIBRATION_BATCH)
            ]
        )

    def get_next(self) -> dict[str, npt.NDArray[Any]] | None:
        return next(self._batches, None)


def _static(
    operators: list[str], source: Path, target: Path, inputs: Mapping[str, npt.NDArray[Any]], device: Device
) -> None:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    quantize_static(
        source,
        target,
        _Calibration(inputs),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=operators,
        per_channel=True,
        # Without VNNI the 8-bit products are added in 16 bits and may saturate; 7-bit weights can't.
        reduce_range=not device.has_vnni,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


def _symmetric(source: Path, target: Path, inputs: Mapping[str, npt.NDArray[Any]], device: Device) -> None:
    """Quantize for TensorRT: it knows signed numbers around zero alone, and adds biases in floating point."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    quantize_static(
        source,
        target,
        _Calibration(inputs),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=_WEIGHTED,
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False},
    )


def _dynamic(source: Path, target: Path, inputs: Mapping[str, npt.NDArray[Any]], device: Device) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        source,
        target,
        op_types_to_quantize=["MatMul", "Gemm"],
        per_channel=True,
        reduce_range=not device.has_vnni,
        weight_type=QuantType.QInt8,
    )


def dynamic(source: Path, target: Path, device: Device) -> None:
    """Write a model whose products are in 8 bits, with scales taken from each input as it comes."""
    draft = target.with_suffix(".prepared")
    prepare(source, draft)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _dynamic(draft, target, {}, device)
    draft.unlink()


METHODS: dict[str, dict[str, Write]] = {
    EMBED_TEXT: {"dynamic": _dynamic, "static-products": partial(_static, _WEIGHTED)},
    EMBED_IMAGE: {
        "static-chain": partial(_static, _CHAIN),
        "static-products": partial(_static, _WEIGHTED),
        "dynamic": _dynamic,
    },
}
"""By tower, the methods worth trying: chains of operators stay in int8, products alone go in and out of it."""


TENSORRT_METHODS: dict[str, Write] = {"symmetric": _symmetric}


def methods(tower: str, runtime: str) -> tuple[str, ...]:
    """Return the methods worth trying for a runtime. Only ONNX Runtime has the operators that dynamic quantization makes."""
    if runtime == "tensorrt":
        return tuple(TENSORRT_METHODS)
    return tuple(name for name in METHODS[tower] if runtime == "onnxruntime" or name != "dynamic")


def prepare(source: Path, target: Path) -> None:
    """Write the model with shapes inferred and operators fused, as the quantizers want it."""
    from onnxruntime.quantization import quant_pre_process

    quant_pre_process(source, target, skip_symbolic_shape=True)


def quantize(
    method: str, tower: str, source: Path, target: Path, inputs: Mapping[str, npt.NDArray[Any]], device: Device
) -> None:
    """Write an int8 model made from a prepared one by one of the tower's methods."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        {**METHODS[tower], **TENSORRT_METHODS}[method](source, target, inputs, device)


def halve(source: Path, target: Path) -> None:
    """Write the model with its 32-bit numbers in 16 bits, but for what goes in and comes out."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with warnings.catch_warnings():
        # It tells of each constant that is cut to what 16 bits hold; parity says whether that matters.
        warnings.simplefilter("ignore")
        onnx.save(convert_float_to_float16(onnx.load(source), keep_io_types=True), target)
