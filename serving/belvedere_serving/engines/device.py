"""What an engine was built on and with: both decide whether it can be reused."""

from __future__ import annotations

import hashlib
import json
import platform
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from belvedere_serving.engines.export import OPSET
from belvedere_serving.engines.litert import converter_version

BUILD_REVISION = 2
"""Raised when this package builds another engine from the same model with the same libraries."""
_TELLING = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_int8",
    "amx_bf16",
    "asimddp",
    "i8mm",
    "bf16",
)


@dataclass(frozen=True)
class Device:
    """What engines run on: its name, and what decides which of them it can run, and how fast."""

    name: str
    features: tuple[str, ...]
    """Of a processor its instruction sets for small numbers; of a GPU its architecture and its driver."""
    kind: Literal["cpu", "gpu"] = "cpu"

    @property
    def has_vnni(self) -> bool:
        """Whether 8-bit products are summed in 32 bits."""
        return bool({"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"} & set(self.features))

    @property
    def is_arm(self) -> bool:
        """Whether it is an Arm processor, as far as its instruction sets tell."""
        return bool({"asimddp", "i8mm"} & set(self.features))

    def __str__(self) -> str:
        return f"{self.kind}: {self.name} ({', '.join(self.features) or 'no vector extensions known'})"


def parse_cpuinfo(text: str, machine: str) -> Device:
    """Return the device that /proc/cpuinfo describes."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    return Device(fields.get("model name") or machine, tuple(feature for feature in _TELLING if feature in flags))


def this_device() -> Device:
    """Return the processor of this machine."""
    path = Path("/proc/cpuinfo")
    return parse_cpuinfo(path.read_text() if path.exists() else "", platform.machine())


def parse_driver(text: str) -> str:
    """Return the version of NVIDIA's driver that /proc/driver/nvidia/version tells; empty where it tells none."""
    found = re.search(r"^NVRM version:.*?\s(\d+\.\d+(?:\.\d+)?)\s", text, re.MULTILINE)
    return found[1] if found else ""


def this_gpu() -> Device | None:
    """Return the first GPU of this machine, None where there is none. A plan is for one architecture, and drifts with the driver."""
    import torch

    if not torch.cuda.is_available():
        return None
    told = torch.cuda.get_device_properties(0)
    path = Path("/proc/driver/nvidia/version")
    driver = parse_driver(path.read_text() if path.exists() else "")
    features = (f"sm_{told.major}{told.minor}", *((f"driver {driver}",) if driver else ()))
    return Device(told.name, features, "gpu")


def device_for(kind: Literal["cpu", "gpu"]) -> Device:
    """Return what an engine is built on and for: this processor where a GPU is asked for and there is none."""
    return (this_gpu() if kind == "gpu" else None) or this_device()


def toolchain(runtime: str = "auto") -> dict[str, str]:
    """Return the versions of what builds engines for a runtime."""
    libraries = {name: version(name) for name in ("torch", "onnx", "onnxscript", "onnxruntime")}
    for name in ("openvino", "tensorrt"):
        with suppress(PackageNotFoundError):
            libraries[name] = version(name)
    if runtime == "litert":
        with suppress(PackageNotFoundError):
            libraries["ai-edge-litert"] = version("ai-edge-litert")
        libraries["litert-converter"] = converter_version()
    return {**libraries, "opset": str(OPSET), "revision": str(BUILD_REVISION)}


def engine_tag(model_digest: str, runtime: str, precision: str, tools: Mapping[str, str], device: Device) -> str:
    """Return the name under which an engine with the same content would be found."""
    made_with = json.dumps([dict(tools), str(device)], sort_keys=True).encode()
    short = model_digest.removeprefix("sha256:")[:12]
    return f"engines/{short}-{runtime}-{precision}-{hashlib.sha256(made_with).hexdigest()[:8]}"
