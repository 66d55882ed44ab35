"""Remembers the last good routes across restarts, so that a route broken meanwhile does not take its service away."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

from pydantic import ValidationError

from belvedere_platform.resources.gateway_route import GatewayRoute

log = logging.getLogger(__name__)

ObjectKey = tuple[str, str]


def load_routes(file: Path) -> dict[ObjectKey, GatewayRoute]:
    """Return the routes by namespace and name of their ConfigMap; none when there is no file, or one that cannot be read."""
    try:
        found = json.loads(file.read_bytes())
        return {(row["namespace"], row["name"]): GatewayRoute.model_validate(row["route"]) for row in found}
    except FileNotFoundError:
        return {}
    except (ValidationError, ValueError, KeyError, TypeError) as error:
        log.warning("remembered routes are not used: file=%s error=%s", file, error)
        return {}


def save_routes(file: Path, routes: dict[ObjectKey, GatewayRoute]) -> None:
    """Write the routes, whole or not at all."""
    rows = [
        {"namespace": namespace, "name": name, "route": route.model_dump(mode="json", by_alias=True)}
        for (namespace, name), route in sorted(routes.items())
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f"{file.name}.{os.getpid()}.draft")
    draft.write_text(json.dumps(rows, indent=1))
    draft.replace(file)
