"""Which engines a processor can run: the pairs of runtime and precision behind a target."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec

from belvedere_platform.errors import InvalidInput
from belvedere_platform.resources.engine import EngineTarget
from belvedere_platform.resources.validation import schemas
from belvedere_serving.engines.device import Device
from belvedere_serving.engines.litert import HINT, find_converter
from belvedere_serving.engines.runtime import Variant


@dataclass(frozen=True)
class _Need:
    met: Callable[[Device], bool]
    what: str


_LITERT = f"the package ai-edge-litert (pip install 'belvedere[litert]') and its converter (`{HINT}`)"
_VARIANTS: dict[Variant, _Need] = {
    Variant("onnxruntime", "fp32"): _Need(lambda device: True, ""),
    Variant("onnxruntime", "int8"): _Need(lambda device: True, ""),
    Variant("onnxruntime", "bf16"): _Need(
        lambda device: "bf16" in device.features and device.is_arm,
        "an Arm processor with bf16: ONNX Runtime has no bfloat16 kernels for others",
    ),
    Variant("openvino", "fp32"): _Need(lambda device: _installed("openvino"), "the package openvino"),
    Variant("openvino", "int8"): _Need(lambda device: _installed("openvino"), "the package openvino"),
    Variant("openvino", "bf16"): _Need(
        lambda device: _installed("openvino") and bool({"avx512_bf16", "amx_bf16"} & set(device.features)),
        "the package openvino and a processor with AVX512_BF16 or AMX",
    ),
    Variant("torch", "fp32"): _Need(lambda device: True, ""),
    Variant("litert", "fp32"): _Need(lambda device: _has_litert(), _LITERT),
    Variant("litert", "int8"): _Need(lambda device: _has_litert(), _LITERT),
    Variant("tensorrt", "fp32"): _Need(lambda device: _has_tensorrt(), "the package tensorrt and an NVIDIA GPU"),
    Variant("tensorrt", "fp16"): _Need(lambda device: _has_tensorrt(), "the package tensorrt and an NVIDIA GPU"),
    Variant("tensorrt", "int8"): _Need(lambda device: _has_tensorrt(), "the package tensorrt and an NVIDIA GPU"),
}


def check_target(given: Mapping[str, str]) -> EngineTarget:
    """Return the target that is asked for, held to the rules of an Engine's. Raises InvalidInput."""
    from belvedere_platform.resources.rules import broken_rules  # CEL takes half a second to import

    schema = schemas()["Engine"]["properties"]["spec"]["properties"]["target"]
    if broken := [message for _, message in broken_rules(schema, dict(given), None)]:
        raise InvalidInput("; ".join(broken))
    return EngineTarget.model_validate(given)


def variants_of(target: EngineTarget, device: Device) -> tuple[Variant, ...]:
    """Return what a target can mean on this device: one variant, or with `auto` all that can run. Raises InvalidInput."""
    asked = [one for one in _VARIANTS if _matches(one, target)]
    possible = tuple(one for one in asked if _VARIANTS[one].met(device))
    if not possible:
        needs = "; ".join(f"{one} needs {_VARIANTS[one].what}" for one in asked)
        raise InvalidInput(
            f"target {target.runtime} {target.precision} cannot be built on {device}: "
            f"{needs or _precisions_of(target)}; use another runtime or precision, or runtime auto"
        )
    return possible


def _matches(variant: Variant, target: EngineTarget) -> bool:
    on_gpu = variant.runtime == "tensorrt"
    # LiteRT is for other devices than the one that builds, and takes one input at a time: it is built where it is asked for.
    meant = target.runtime == variant.runtime or (target.runtime == "auto" and variant.runtime != "litert")
    return meant and target.precision in ("auto", variant.precision) and on_gpu == (target.device == "gpu")


def _precisions_of(target: EngineTarget) -> str:
    known = [one.precision for one in _VARIANTS if one.runtime == target.runtime]
    return f"{target.runtime} has no such engine, only {', '.join(known)}"


def _installed(package: str) -> bool:
    return find_spec(package) is not None


def _has_litert() -> bool:
    return _installed("ai_edge_litert") and find_converter() is not None


def _has_tensorrt() -> bool:
    if not _installed("tensorrt"):
        return False
    import torch

    return bool(torch.cuda.is_available())
