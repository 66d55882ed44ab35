"""Decide what a pod template means on one machine: which commands, with which environment, and which files under which root."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from belvedere_platform.errors import InvalidInput, NotFound
from belvedere_platform.store import Manifest

ROOT_VARIABLE = "BELVEDERE_ROOT"
_REFERENCE = re.compile(r"\$\$|\$\(([-._a-zA-Z][-._a-zA-Z0-9]*)\)")


@dataclass(frozen=True, kw_only=True)
class MountedFile:
    """One file that a ConfigMap or a Secret brings."""

    path: Path
    content: bytes
    mode: int


@dataclass(frozen=True, kw_only=True)
class MountedDirectory:
    """A path of the container that leads to a directory of the machine."""

    path: Path
    target: Path


@dataclass(frozen=True, kw_only=True)
class Probe:
    """How to ask whether a container is ready: connect, and when there is a path, GET it."""

    port: int
    path: str | None
    timeout_seconds: float
    period_seconds: float
    initial_delay_seconds: float


@dataclass(frozen=True, kw_only=True)
class ContainerPlan:
    """One container as a command with its files."""

    name: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    root: Path
    directory: Path
    files: tuple[MountedFile, ...]
    directories: tuple[MountedDirectory, ...]
    projected: tuple[Path, ...]
    """Directories that hold the files above and nothing else."""
    probe: Probe | None


@dataclass(frozen=True, kw_only=True)
class PodPlan:
    """What to run: first each initial container to its end, then the others together."""

    initial: tuple[ContainerPlan, ...]
    containers: tuple[ContainerPlan, ...]
    fingerprint: str
    grace_seconds: float


@dataclass(frozen=True, kw_only=True)
class PodPlace:
    """Where and as whom a pod runs."""

    namespace: str
    name: str
    uid: str
    directory: Path
    claims: Path
    """Parent of the directories behind persistent volume claims."""
    environment: Mapping[str, str]
    """What every process gets; the container's own env wins, except for BELVEDERE_ROOT."""
    ports: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Ports of its own, by name, for a pod that asks for them."""
    fixed: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """What wins over the container's own env."""


@dataclass(frozen=True, kw_only=True)
class Sources:
    """The ConfigMaps and Secrets of the namespace, by name."""

    config_maps: Mapping[str, Manifest]
    secrets: Mapping[str, Manifest]


def plan_pod(template: Manifest, *, place: PodPlace, sources: Sources) -> PodPlan:
    """Return what a pod template asks for. Raises NotFound for a ConfigMap, Secret or key that is missing, InvalidInput."""
    spec = template.get("spec", {})
    if not spec.get("containers"):
        raise InvalidInput("spec.template.spec.containers is empty: give at least one container")
    volumes = {volume["name"]: volume for volume in spec.get("volumes", ())}
    return PodPlan(
        initial=tuple(_plan_container(c, volumes, place, sources) for c in spec.get("initContainers", ())),
        containers=tuple(_plan_container(c, volumes, place, sources) for c in spec["containers"]),
        fingerprint=fingerprint_of(template),
        grace_seconds=float(spec.get("terminationGracePeriodSeconds", 30)),
    )


def fingerprint_of(template: Manifest) -> str:
    """Return a hash of a pod template: as long as it stays the same, running processes are left alone."""
    return hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()[:16]


def expand(text: str, variables: Mapping[str, str]) -> str:
    """Replace `$(NAME)` as the kubelet does: unknown names stay as they are, and `$$` is a `$` that begins no reference."""

    def replacement(match: re.Match[str]) -> str:
        if match.group() == "$$":
            return "$"
        return variables.get(match.group(1), match.group())

    return _REFERENCE.sub(replacement, text)


def references(template: Manifest) -> Iterator[tuple[str, str]]:
    """Yield ("ConfigMap" or "Secret", name) for each that a pod template reads."""
    spec = template.get("spec", {})
    for volume in spec.get("volumes", ()):
        if "configMap" in volume:
            yield "ConfigMap", volume["configMap"]["name"]
        if "secret" in volume:
            yield "Secret", volume["secret"]["secretName"]
    for container in (*spec.get("initContainers", ()), *spec.get("containers", ())):
        for entry in container.get("envFrom", ()):
            for field, kind in (("configMapRef", "ConfigMap"), ("secretRef", "Secret")):
                if field in entry:
                    yield kind, entry[field]["name"]
        for variable in container.get("env", ()):
            for field, kind in (("configMapKeyRef", "ConfigMap"), ("secretKeyRef", "Secret")):
                if field in variable.get("valueFrom", {}):
                    yield kind, variable["valueFrom"][field]["name"]


def _plan_container(
    container: Manifest, volumes: Mapping[str, Manifest], place: PodPlace, sources: Sources
) -> ContainerPlan:
    name = container["name"]
    root = place.directory / name
    environment = _environment(container, place, sources, root)
    words = [*container.get("command", ()), *container.get("args", ())]
    if not container.get("command"):
        raise InvalidInput(
            f"command of container {name} is empty: without an image's entry point it must name the program to run"
        )
    files, directories, projected = _mounts(container, volumes, place, sources, root)
    directory = container.get("workingDir")
    return ContainerPlan(
        name=name,
        arguments=tuple(expand(word, environment) for word in words),
        environment=environment,
        root=root,
        directory=Path(expand(directory, environment)) if directory else root,
        files=files,
        directories=directories,
        projected=projected,
        probe=_probe(container, place.ports),
    )


def _environment(container: Manifest, place: PodPlace, sources: Sources, root: Path) -> dict[str, str]:
    environment = {**place.environment, ROOT_VARIABLE: str(root)}
    for entry in container.get("envFrom", ()):
        for field, kind in (("configMapRef", "ConfigMap"), ("secretRef", "Secret")):
            if field in entry and (data := _data(kind, entry[field], sources)) is not None:
                prefix = entry.get("prefix", "")
                environment |= {prefix + key: value.decode() for key, value in data.items()}
    for variable in container.get("env", ()):
        value = _value(variable, place, sources, environment)
        if variable["name"] != ROOT_VARIABLE and value is not None:
            environment[variable["name"]] = value
    return {**environment, **place.fixed}


def _value(variable: Manifest, place: PodPlace, sources: Sources, environment: Mapping[str, str]) -> str | None:
    source = variable.get("valueFrom")
    if source is None:
        return expand(variable.get("value", ""), environment)
    for field, kind in (("configMapKeyRef", "ConfigMap"), ("secretKeyRef", "Secret")):
        if field in source:
            data = _data(kind, source[field], sources)
            found = (data or {}).get(source[field]["key"])
            if found is None and not source[field].get("optional"):
                raise NotFound(f"{kind} {source[field]['name']} has no key {source[field]['key']!r}")
            return found.decode() if found is not None else None
    path = source.get("fieldRef", {}).get("fieldPath")
    fields = {
        "metadata.name": place.name,
        "metadata.namespace": place.namespace,
        "metadata.uid": place.uid,
        "status.podIP": "127.0.0.1",
        "status.hostIP": "127.0.0.1",
        "spec.nodeName": "localhost",
    }
    if path not in fields:
        raise InvalidInput(
            f"env {variable['name']}: valueFrom {json.dumps(source)} is not known here; "
            f"use configMapKeyRef, secretKeyRef or a fieldRef to one of {', '.join(fields)}"
        )
    return fields[path]


def _data(kind: str, reference: Manifest, sources: Sources) -> dict[str, bytes] | None:
    name = reference.get("name") or reference["secretName"]
    found = (sources.config_maps if kind == "ConfigMap" else sources.secrets).get(name)
    if found is None:
        if reference.get("optional"):
            return None
        raise NotFound(f"{kind} {name} does not exist: create it in the same namespace")
    if kind == "ConfigMap":
        text = {key: value.encode() for key, value in (found.get("data") or {}).items()}
        return text | {key: base64.b64decode(value) for key, value in (found.get("binaryData") or {}).items()}
    secret = {key: base64.b64decode(value) for key, value in (found.get("data") or {}).items()}
    return secret | {key: value.encode() for key, value in (found.get("stringData") or {}).items()}


def _mounts(
    container: Manifest, volumes: Mapping[str, Manifest], place: PodPlace, sources: Sources, root: Path
) -> tuple[tuple[MountedFile, ...], tuple[MountedDirectory, ...], tuple[Path, ...]]:
    files: list[MountedFile] = []
    directories: list[MountedDirectory] = []
    projected: list[Path] = []
    for mount in container.get("volumeMounts", ()):
        volume = volumes.get(mount["name"])
        if volume is None:
            raise InvalidInput(f"volumeMounts of container {container['name']} names {mount['name']!r}: no such volume")
        path = root / mount["mountPath"].lstrip("/")
        contents = _projection(volume, sources)
        if contents is None:
            target = _machine_directory(volume, place)
            directories.append(MountedDirectory(path=path, target=target / mount.get("subPath", "")))
        elif "subPath" in mount:
            if mount["subPath"] in contents:
                content, mode = contents[mount["subPath"]]
                files.append(MountedFile(path=path, content=content, mode=mode))
        else:
            projected.append(path)
            files += (
                MountedFile(path=path / name, content=content, mode=mode) for name, (content, mode) in contents.items()
            )
    return tuple(files), tuple(directories), tuple(projected)


def _projection(volume: Manifest, sources: Sources) -> dict[str, tuple[bytes, int]] | None:
    """Return the files of a ConfigMap or Secret volume, None for a volume of another type."""
    for field, kind, mode in (("configMap", "ConfigMap", 0o644), ("secret", "Secret", 0o600)):
        if field not in volume:
            continue
        data = _data(kind, volume[field], sources) or {}
        items: Iterable[Any] = volume[field].get("items") or ({"key": key, "path": key} for key in sorted(data))
        contents = {}
        for item in items:
            if item["key"] not in data:
                raise NotFound(f"volume {volume['name']}: the {kind} has no key {item['key']!r}")
            contents[item["path"]] = (data[item["key"]], item.get("mode", volume[field].get("defaultMode", mode)))
        return contents
    return None


def _machine_directory(volume: Manifest, place: PodPlace) -> Path:
    if "emptyDir" in volume:
        return place.directory / ".volumes" / str(volume["name"])
    if "hostPath" in volume:
        return Path(expand(volume["hostPath"]["path"], place.environment))
    if "persistentVolumeClaim" in volume:
        return place.claims / str(volume["persistentVolumeClaim"]["claimName"])
    raise InvalidInput(
        f"volume {volume['name']} is of a type that is not known here: "
        "use configMap, secret, emptyDir, hostPath or persistentVolumeClaim"
    )


def _probe(container: Manifest, own: Mapping[str, int]) -> Probe | None:
    probe = container.get("readinessProbe")
    if not probe:
        return None
    action = probe.get("httpGet") or probe.get("tcpSocket")
    if action is None:
        raise InvalidInput(f"readinessProbe of container {container['name']} must have httpGet or tcpSocket")
    ports = {**{port.get("name"): port["containerPort"] for port in container.get("ports", ())}, **own}
    port = action["port"] if isinstance(action["port"], int) else ports.get(action["port"])
    if port is None:
        raise InvalidInput(
            f"readinessProbe of container {container['name']}: port {action['port']!r} is not among its ports"
        )
    return Probe(
        port=port,
        path=action.get("path", "/") if "httpGet" in probe else None,
        timeout_seconds=float(probe.get("timeoutSeconds", 1)),
        period_seconds=float(probe.get("periodSeconds", 10)),
        initial_delay_seconds=float(probe.get("initialDelaySeconds", 0)),
    )
