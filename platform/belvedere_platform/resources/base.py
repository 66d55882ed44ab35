"""What every Belvedere resource shares: metadata, conditions, and how Python names become field names."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from pydantic.alias_generators import to_camel

GROUP = "belvedere.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", min_length=1, max_length=63)]
Digest = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
Timestamp = Annotated[str, Field(json_schema_extra={"format": "date-time"})]


class CelRule(BaseModel):
    """One `x-kubernetes-validations` entry: a CEL expression over `self` (and `oldSelf`) and the sentence shown when it is false."""

    rule: str
    message: str
    field_path: str | None = None


class Part(BaseModel):
    """A piece of a resource. Unknown fields are refused; `cel` holds rules across the fields of this piece."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)
    cel: ClassVar[tuple[CelRule, ...]] = ()


class Condition(Part):
    """One observation of an object's state, as Kubernetes conditions are."""

    type: str
    status: Literal["True", "False", "Unknown"]
    reason: Annotated[str, StringConstraints(pattern=r"^[A-Z][A-Za-z0-9]*$")]
    message: str = ""
    observed_generation: int | None = None
    last_transition_time: Timestamp | None = None


class Status(Part):
    """What every status has."""

    observed_generation: int | None = None
    conditions: tuple[Condition, ...] = Field(
        default=(), json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}
    )


class PrinterColumn(Part):
    """One column of `kubectl get`. priority 1 shows only with `--output wide`."""

    name: str
    type: Literal["string", "integer", "number", "date", "boolean"]
    json_path: str
    description: str = ""
    priority: int = 0


class Resource(BaseModel):
    """A custom resource: class variables describe the CRD, fields hold one object."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)

    kind_name: ClassVar[str]
    plural: ClassVar[str]
    short_names: ClassVar[tuple[str, ...]]
    columns: ClassVar[tuple[PrinterColumn, ...]] = ()
    conditions: ClassVar[dict[str, str]] = {}
    """Condition types with the reasons each may have, for the documentation."""
    scale: ClassVar[dict[str, str] | None] = None

    api_version: Literal["belvedere.dev/v1alpha1"]
    kind: str
    metadata: dict[str, Any]
