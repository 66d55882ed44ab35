"""Remembers the last good routes and replicas across restarts: for a route that was broken meanwhile, and a store that is down."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from belvedere_platform.resources.gateway_route import GatewayRoute
from belvedere_serving.gateway.world import Replica, VersionKey

log = logging.getLogger(__name__)

ObjectKey = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Memory:
    """The last good reading of each object, by its namespace and name."""

    routes: Mapping[ObjectKey, GatewayRoute] = field(default_factory=dict)
    replicas: Mapping[ObjectKey, tuple[tuple[VersionKey, Replica], ...]] = field(default_factory=dict)


def load_memory(file: Path) -> Memory:
    """Return what was remembered; nothing when there is no file, or one that cannot be read."""
    try:
        found = json.loads(file.read_bytes())
        return Memory(
            routes={_key(row): GatewayRoute.model_validate(row["route"]) for row in found["routes"]},
            replicas={_key(row): tuple(_replica(one) for one in row["replicas"]) for row in found["replicas"]},
        )
    except FileNotFoundError:
        return Memory()
    except (OSError, ValidationError, ValueError, KeyError, TypeError) as error:
        log.warning("what was remembered is not used: file=%s error=%s", file, error)
        return Memory()


def save_memory(file: Path, memory: Memory) -> None:
    """Write it, whole or not at all. Raises OSError."""
    routes = [
        {"namespace": namespace, "name": name, "route": route.model_dump(mode="json", by_alias=True)}
        for (namespace, name), route in sorted(memory.routes.items(), key=lambda item: item[0])
    ]
    replicas = [
        {
            "namespace": namespace,
            "name": name,
            "replicas": [{"version": version, "replica": asdict(replica)} for version, replica in found],
        }
        for (namespace, name), found in sorted(memory.replicas.items())
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f"{file.name}.{os.getpid()}.draft")
    try:
        draft.write_text(json.dumps({"routes": routes, "replicas": replicas}, indent=1))
        draft.replace(file)
    except OSError:
        draft.unlink(missing_ok=True)
        raise


def _key(row: Mapping[str, str]) -> ObjectKey:
    return (row["namespace"], row["name"])


def _replica(row: Mapping[str, Any]) -> tuple[VersionKey, Replica]:
    namespace, service, version = row["version"]
    return (namespace, service, version), Replica(**row["replica"])
