"""ModelVersion: one immutable, content-addressed set of weights, and where they come from."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from belvedere_platform.resources.base import CelRule, Digest, Name, Part, PrinterColumn, Resource, Status


class Lineage(Part):
    """Everything the weights were made from."""

    training_run: str | None = None
    data_digest: Digest | None = None
    config_digest: Digest | None = None
    parent: Annotated[Name | None, Field(description="the ModelVersion that training started from")] = None


class EvaluationRecord(Part):
    """Whether the gates of the run held, or who let it in without."""

    passed: bool
    waived: Annotated[
        str | None,
        Field(min_length=1, max_length=1024, description="why this version may exist without a passed evaluation"),
    ] = None
    cel: ClassVar = (
        CelRule(
            rule="self.passed || has(self.waived)",
            message="evaluation.waived must say why, when evaluation.passed is false",
        ),
    )


class ModelVersionSpec(Part):
    """Immutable."""

    model: Name
    digest: Digest
    lineage: Lineage = Lineage()
    evaluation: EvaluationRecord
    metrics: Annotated[
        dict[str, float], Field(description="evaluation metrics by name, for example heldout_style_en_r1")
    ] = {}
    cel: ClassVar = (CelRule(rule="self == oldSelf", message="a ModelVersion is immutable: make a new one"),)


class ModelVersionStatus(Status):
    """Whether the artifact is there and whole."""

    size_bytes: int | None = None


class ModelVersion(Resource):
    """An immutable version of a model."""

    kind_name = "ModelVersion"
    plural = "modelversions"
    short_names = ("mver",)
    columns = (
        PrinterColumn(name="Model", type="string", json_path=".spec.model"),
        PrinterColumn(name="Ready", type="string", json_path=".status.conditions[?(@.type=='Ready')].status"),
        PrinterColumn(name="Run", type="string", json_path=".spec.lineage.trainingRun"),
        PrinterColumn(name="Parent", type="string", json_path=".spec.lineage.parent"),
        PrinterColumn(name="Digest", type="string", json_path=".spec.digest", priority=1),
        PrinterColumn(name="Age", type="date", json_path=".metadata.creationTimestamp"),
    )
    conditions = {"Ready": "Verified, ArtifactNotFound, CorruptArtifact"}

    kind: Literal["ModelVersion"]
    spec: ModelVersionSpec
    status: ModelVersionStatus | None = None
