"""What may be asked of the pods that Belvedere starts: a narrow part of a pod, for one object or for a whole installation."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from belvedere_platform.resources.base import CelRule, Part


def _keyed_by(key: str) -> dict[str, Any]:
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [key]}


Labels = Annotated[dict[str, str], Field(max_length=64)]


class LocalReference(Part):
    """An object of the same namespace, by name."""

    name: Annotated[str, Field(min_length=1, max_length=253)]


class KeyReference(Part):
    """One key of a ConfigMap or a Secret."""

    name: Annotated[str, Field(min_length=1, max_length=253)]
    key: Annotated[str, Field(min_length=1, max_length=253)]
    optional: bool = False


class FieldReference(Part):
    """A field of the pod itself."""

    field_path: Annotated[str, Field(min_length=1, max_length=253)]


class ValueSource(Part):
    """Where the value of a variable comes from."""

    config_map_key_ref: KeyReference | None = None
    secret_key_ref: KeyReference | None = None
    field_ref: FieldReference | None = None


class Variable(Part):
    """One environment variable."""

    name: Annotated[str, Field(min_length=1, max_length=253)]
    value: Annotated[str | None, Field(max_length=32_768)] = None
    value_from: ValueSource | None = None


class VariableSource(Part):
    """All keys of a ConfigMap or a Secret as environment variables."""

    prefix: str | None = None
    config_map_ref: LocalReference | None = None
    secret_ref: LocalReference | None = None


class Toleration(Part):
    """A taint that the pods may be placed on."""

    key: str | None = None
    operator: Literal["Exists", "Equal"] | None = None
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    toleration_seconds: Annotated[int | None, Field(ge=0)] = None


class ConfigMapVolume(Part):
    """Files from a ConfigMap."""

    name: Annotated[str, Field(min_length=1, max_length=253)]
    optional: bool = False


class SecretVolume(Part):
    """Files from a Secret."""

    secret_name: Annotated[str, Field(min_length=1, max_length=253)]
    optional: bool = False


class EmptyVolume(Part):
    """A directory as long-lived as the pod."""

    medium: Literal["Memory"] | None = None
    size_limit: str | None = None


class ClaimVolume(Part):
    """A persistent volume."""

    claim_name: Annotated[str, Field(min_length=1, max_length=253)]
    read_only: bool | None = None


class HostVolume(Part):
    """A directory of the node."""

    path: Annotated[str, Field(pattern=r"^/", max_length=4096)]
    type: str | None = None


class ImageVolume(Part):
    """The files of an OCI image or artifact, read-only."""

    reference: Annotated[str, Field(min_length=1, max_length=1024)]
    pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None


class Volume(Part):
    """One volume, of exactly one type."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
    config_map: ConfigMapVolume | None = None
    secret: SecretVolume | None = None
    empty_dir: EmptyVolume | None = None
    persistent_volume_claim: ClaimVolume | None = None
    image: ImageVolume | None = None
    cel: ClassVar[tuple[CelRule, ...]] = (
        CelRule(
            rule="[has(self.configMap), has(self.secret), has(self.emptyDir), has(self.persistentVolumeClaim), "
            "has(self.image)].filter(given, given).size() == 1",
            message="a volume has exactly one of configMap, secret, emptyDir, persistentVolumeClaim and image",
        ),
    )


class InstallationVolume(Volume):
    """One volume that whoever installs Belvedere may give to its pods: also one of the node or of a CSI driver."""

    host_path: HostVolume | None = None
    csi: dict[str, Any] | None = None
    cel: ClassVar[tuple[CelRule, ...]] = ()

    @model_validator(mode="after")
    def has_one_type(self) -> InstallationVolume:
        """Refuse a volume without a type or with several."""
        if len(self.model_fields_set - {"name"}) != 1:
            types = "configMap, secret, emptyDir, persistentVolumeClaim, image, hostPath and csi"
            raise ValueError(f"volume {self.name} must have exactly one of {types}")
        return self


class VolumeMount(Part):
    """Where a volume appears in the container."""

    name: Annotated[str, Field(min_length=1, max_length=63)]
    mount_path: Annotated[str, Field(pattern=r"^/", max_length=4096)]
    sub_path: str | None = None
    read_only: bool | None = None


class PodPatch(Part):
    """What an object may ask of its pods; it comes after what the installation says of all pods."""

    image: Annotated[str | None, Field(min_length=1, max_length=1024)] = None
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    image_pull_secrets: Annotated[tuple[LocalReference, ...], Field(max_length=16)] = ()
    node_selector: Labels = {}
    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=32)] = ()
    priority_class_name: Annotated[str | None, Field(max_length=253)] = None
    runtime_class_name: Annotated[str | None, Field(max_length=253)] = None
    labels: Labels = {}
    annotations: Labels = {}
    env: Annotated[tuple[Variable, ...], Field(max_length=64, json_schema_extra=_keyed_by("name"))] = ()
    env_from: Annotated[tuple[VariableSource, ...], Field(max_length=16)] = ()
    volumes: Annotated[tuple[Volume, ...], Field(max_length=16, json_schema_extra=_keyed_by("name"))] = ()
    volume_mounts: Annotated[
        tuple[VolumeMount, ...], Field(max_length=32, json_schema_extra=_keyed_by("mountPath"))
    ] = ()


class InstallationPodPatch(PodPatch):
    """What an installation says of pods: all of the above, and what only whoever installs Belvedere may decide."""

    service_account_name: Annotated[str | None, Field(max_length=253)] = None
    volumes: Annotated[tuple[InstallationVolume, ...], Field(max_length=32)] = ()
    security_context: Annotated[dict[str, Any], Field(description="of the pod, over the restricted default")] = {}
    container_security_context: Annotated[
        dict[str, Any], Field(description="of the container, over the restricted default")
    ] = {}


class PodDefaults(Part):
    """The file that `belvedere operator --pod-defaults` reads: for all pods, and over that for each duty."""

    all: InstallationPodPatch = InstallationPodPatch()
    training: InstallationPodPatch = InstallationPodPatch()
    engines: InstallationPodPatch = InstallationPodPatch()
    serving: InstallationPodPatch = InstallationPodPatch()
