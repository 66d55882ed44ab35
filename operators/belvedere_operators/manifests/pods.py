"""The pods of children: restricted by default, then as the installation, the duty and the object ask. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from belvedere_operators.manifests.installation_file import read_installation_file
from belvedere_operators.manifests.raycluster import HeadStore
from belvedere_platform.resources.pod_patch import InstallationPodPatch, PodDefaults, PodPatch, Variable
from belvedere_platform.store import Manifest

Duty = Literal["training", "engines", "serving"]
USER = 65532
CACHE = "/var/cache/belvedere"
POD_SECURITY: Mapping[str, Any] = {
    "runAsNonRoot": True,
    "runAsUser": USER,
    "runAsGroup": USER,
    "fsGroup": USER,
    "fsGroupChangePolicy": "OnRootMismatch",
    "seccompProfile": {"type": "RuntimeDefault"},
}
CONTAINER_SECURITY: Mapping[str, Any] = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
}
CONTAINER_ENVIRONMENT: Mapping[str, str] = {"BELVEDERE_CACHE": CACHE, "HOME": "/tmp", "USER": "belvedere"}
# What is written by programs that do not ask: each is a directory of the pod, since its own files cannot be changed.
WRITABLE: Mapping[str, tuple[str, dict[str, Any]]] = {
    "cache": (CACHE, {"emptyDir": {}}),
    "shm": ("/dev/shm", {"emptyDir": {"medium": "Memory"}}),
    "tmp": ("/tmp", {"emptyDir": {}}),
}


@dataclass(frozen=True, kw_only=True)
class PodSettings:
    """How an installation sets up the pods of its children."""

    image: str
    """Where the defaults name none."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """What the control plane tells every child."""
    defaults: PodDefaults = field(default_factory=PodDefaults)
    head_store: HeadStore | None = None
    """Where Ray heads that serve keep what they know; None for their memory alone."""


def read_pod_defaults(path: Path) -> PodDefaults:
    """Return the pod defaults in a YAML file. Raises InvalidInput that names the field."""
    return read_installation_file(path, PodDefaults, what="pod defaults")


def in_containers(defaults: PodDefaults) -> PodDefaults:
    """Return the defaults with what a program in a container of its own must be told: where it may write."""
    told = tuple(Variable(name=name, value=value) for name, value in CONTAINER_ENVIRONMENT.items())
    fields = defaults.all.model_dump(exclude_unset=True)
    env = by_name((one.model_dump() for one in told), (one.model_dump() for one in defaults.all.env))
    return defaults.model_copy(update={"all": InstallationPodPatch.model_validate({**fields, "env": env})})


def pod_template(
    container: Mapping[str, Any],
    *,
    duty: Duty,
    pods: PodSettings,
    patch: PodPatch | None,
    labels: Mapping[str, str],
    spec: Mapping[str, Any] | None = None,
) -> Manifest:
    """Return a pod template around one container. `spec` holds further fields of the pod that are not for a patch to change."""
    defaults = pods.defaults
    asked = [_fields(one) for one in (defaults.all, getattr(defaults, duty), patch) if one is not None]
    built = _built_in({"image": pods.image, **container})
    for fields in asked:
        built = _patched(built, fields)
    pod, body, metadata = built["pod"], built["container"], built["metadata"]
    return {
        "metadata": {**metadata, "labels": {**metadata.get("labels", {}), **labels}},
        "spec": {**pod, **(spec or {}), "containers": [body]},
    }


def _built_in(container: Mapping[str, Any]) -> dict[str, Any]:
    mounts = [{"name": name, "mountPath": path} for name, (path, _) in WRITABLE.items()]
    body = {
        **container,
        "securityContext": dict(CONTAINER_SECURITY),
        "env": by_name(container.get("env", ()), ()),
        "volumeMounts": _merged(mounts, container.get("volumeMounts", ()), key="mountPath"),
    }
    pod = {
        "automountServiceAccountToken": False,
        "securityContext": dict(POD_SECURITY),
        "volumes": [{"name": name, **source} for name, (_, source) in WRITABLE.items()],
    }
    return {"pod": pod, "container": body, "metadata": {}}


def _fields(patch: PodPatch) -> dict[str, Any]:
    return patch.model_dump(by_alias=True, mode="json", exclude_none=True, exclude_defaults=True)


_OF_POD = ("priorityClassName", "runtimeClassName", "serviceAccountName")
_OF_CONTAINER = ("image", "imagePullPolicy")


def _patched(built: dict[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    pod, body, metadata = dict(built["pod"]), dict(built["container"]), dict(built["metadata"])
    pod |= {name: asked[name] for name in _OF_POD if name in asked}
    body |= {name: asked[name] for name in _OF_CONTAINER if name in asked}
    for place, name, given in (
        (pod, "nodeSelector", "nodeSelector"),
        (metadata, "labels", "labels"),
        (metadata, "annotations", "annotations"),
        (pod, "securityContext", "securityContext"),
        (body, "securityContext", "containerSecurityContext"),
    ):
        if asked.get(given):
            place[name] = {**place.get(name, {}), **asked[given]}
    for place, name, key in (
        (pod, "imagePullSecrets", "name"),
        (pod, "volumes", "name"),
        (body, "env", "name"),
        (body, "volumeMounts", "mountPath"),
    ):
        if asked.get(name):
            place[name] = _merged(place.get(name, ()), asked[name], key=key)
    for place, name in ((pod, "tolerations"), (body, "envFrom")):
        before = place.get(name, [])
        if asked.get(name):
            place[name] = [*before, *(one for one in asked[name] if one not in before)]
    return {"pod": pod, "container": body, "metadata": metadata}


def env_list(variables: Mapping[str, str]) -> list[dict[str, str]]:
    """Return variables as a container names them."""
    return [{"name": name, "value": value} for name, value in sorted(variables.items())]


def by_name(first: Iterable[Mapping[str, Any]], second: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return named things in the order of their names, the second's in place of the first's."""
    return _merged(first, second, key="name")


def _merged(
    first: Iterable[Mapping[str, Any]], second: Iterable[Mapping[str, Any]], *, key: str
) -> list[dict[str, Any]]:
    merged = {one[key]: dict(one) for one in (*first, *second)}
    return [merged[name] for name in sorted(merged)]
