"""Engine: a ModelVersion compiled for one target, checked for parity with its source and timed."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from belvedere_platform.resources.base import CelRule, Digest, Name, Part, PrinterColumn, Resource, Status
from belvedere_platform.resources.pod_patch import PodPatch


class EngineTarget(Part):
    """What the engine is for."""

    runtime: Annotated[
        Literal["auto", "onnxruntime", "openvino", "torch", "tensorrt", "litert"],
        Field(
            description="auto: whichever is fastest on the device that builds it, among those that pass parity; never litert"
        ),
    ] = "onnxruntime"
    precision: Annotated[
        Literal["auto", "fp32", "bf16", "fp16", "int8"], Field(description="auto goes with runtime auto")
    ] = "fp32"
    device: Literal["cpu", "gpu"] = "cpu"
    cel: ClassVar = (
        CelRule(
            rule="self.precision != 'auto' || self.runtime == 'auto'",
            message="precision auto needs runtime auto",
        ),
        CelRule(
            rule="self.runtime == 'auto' || (self.runtime == 'tensorrt') == (self.device == 'gpu')",
            message="runtime tensorrt needs device gpu, and device gpu needs runtime tensorrt or auto",
        ),
        CelRule(
            rule="self.precision != 'fp16' || self.device == 'gpu'",
            message="precision fp16 needs device gpu",
        ),
    )


class ParityGate(Part):
    """How near the engine's embeddings must stay to the source model's, on held-out inputs."""

    cosine_minimum: Annotated[float, Field(ge=-1, le=1, description="smallest cosine over all inputs")] = 0.98
    top1_agreement_minimum: Annotated[
        float,
        Field(ge=0, le=1, description="share of retrievals, matches and written words with the same first answer"),
    ] = 0.95


class EngineSpec(Part):
    """Immutable."""

    model_version: Name
    target: EngineTarget = EngineTarget()
    parity: ParityGate = ParityGate()
    latency_budget_milliseconds: Annotated[
        float | None, Field(gt=0, description="refuse an engine whose p50 for one input is above")
    ] = None
    pod: PodPatch = PodPatch()
    cel: ClassVar = (
        CelRule(
            rule="self.modelVersion == oldSelf.modelVersion && self.target == oldSelf.target",
            message="modelVersion and target of an Engine cannot be changed: make a new one",
        ),
    )


class ParityReport(Part):
    """Engine against source, on held-out inputs. Of what is written, agreement is that of words."""

    cosine_min: float
    cosine_mean: float
    top1_agreement: float
    samples: int


class LatencyReport(Part):
    """Milliseconds for one input, engine and source in alternating rounds."""

    p50_milliseconds: float
    p95_milliseconds: float
    torch_p50_milliseconds: float
    batch: int = 1


class BatchPoint(Part):
    """A run of so many inputs together."""

    batch: int
    size: Annotated[int | None, Field(description="tokens of each text, or pixels of the edge of each picture")] = None
    p50_milliseconds: float
    per_second: Annotated[float, Field(description="inputs a second")]


class CandidateReport(Part):
    """An engine that `auto` tried."""

    p50_milliseconds: Annotated[dict[str, float], Field(description="for one input, by V2 model name")] = {}
    passed: Annotated[bool, Field(description="whether parity held")] = False
    problem: Annotated[str | None, Field(description="why it could not be built")] = None


class EngineStatus(Status):
    """What was built and measured."""

    digest: Digest | None = None
    job: str | None = None
    parity: Annotated[dict[str, ParityReport], Field(description="by V2 model name")] = {}
    latency: Annotated[dict[str, LatencyReport], Field(description="by V2 model name")] = {}
    curve: Annotated[dict[str, tuple[BatchPoint, ...]], Field(description="by V2 model name")] = {}
    chosen: Annotated[str | None, Field(description="runtime and precision of the engine that was built")] = None
    candidates: Annotated[dict[str, CandidateReport], Field(description="with runtime auto, all that were tried")] = {}
    toolchain: dict[str, str] = {}
    device: str | None = None
    size_bytes: int | None = None


class Engine(Resource):
    """A compiled ModelVersion."""

    kind_name = "Engine"
    plural = "engines"
    short_names = ("eng",)
    columns = (
        PrinterColumn(name="Version", type="string", json_path=".spec.modelVersion"),
        PrinterColumn(name="Runtime", type="string", json_path=".spec.target.runtime"),
        PrinterColumn(name="Precision", type="string", json_path=".spec.target.precision"),
        PrinterColumn(name="Ready", type="string", json_path=".status.conditions[?(@.type=='Ready')].status"),
        PrinterColumn(name="Reason", type="string", json_path=".status.conditions[?(@.type=='Ready')].reason"),
        PrinterColumn(name="Digest", type="string", json_path=".status.digest", priority=1),
        PrinterColumn(name="Age", type="date", json_path=".metadata.creationTimestamp"),
    )
    conditions = {
        "Accepted": "Accepted, ModelVersionNotFound",
        "Ready": "Built, Reused, Pending, Building, ParityFailed, LatencyBudgetExceeded, BuildFailed",
    }

    kind: Literal["Engine"]
    spec: EngineSpec
    status: EngineStatus | None = None
