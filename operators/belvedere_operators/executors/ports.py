"""Ports of their own for pods that share the machine's one address, kept as long as the pod is."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from pathlib import Path

from belvedere_operators.executors.process import write_atomically
from belvedere_operators.manifests.triton import ADDRESS_VARIABLE, OWN_PORTS_ANNOTATION, port_variable
from belvedere_platform.ports import LOOPBACK, free_ports
from belvedere_platform.store import Manifest

_FILE = "ports.json"


def asks_for_ports(template: Manifest) -> bool:
    """Whether the pods of a template have ports of their own here."""
    annotations = template.get("metadata", {}).get("annotations") or {}
    return annotations.get(OWN_PORTS_ANNOTATION) == "true"


def pod_ports(template: Manifest, directory: Path, *, running: bool) -> dict[str, int]:
    """Return the ports of a pod by name: those it has, or new ones when it does not run and others took them."""
    if not asks_for_ports(template):
        return {}
    names = [port["name"] for container in template["spec"]["containers"] for port in container.get("ports", ())]
    file = directory / _FILE
    known: dict[str, int] = json.loads(file.read_text()) if file.exists() else {}
    if set(known) == set(names) and (running or all(_is_free(port) for port in known.values())):
        return known
    chosen = dict(zip(names, free_ports(len(names)), strict=True))
    directory.mkdir(parents=True, exist_ok=True)
    write_atomically(file, json.dumps(chosen).encode())
    return chosen


def port_environment(ports: Mapping[str, int]) -> dict[str, str]:
    """Return what a process is told of its ports."""
    told = {port_variable(name): f"{number}" for name, number in ports.items()}
    return {ADDRESS_VARIABLE: LOOPBACK, **told} if told else {}


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True
