"""The columns of `get`: the printer columns of our resources, and the few that other kinds are known by."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from belvedere_platform.errors import InvalidInput
from belvedere_platform.resources import RESOURCES
from belvedere_platform.store import Manifest
from belvedere_platform.store.kinds import Kind

_STEP = re.compile(
    r"\.(?P<name>[A-Za-z_][\w-]*)|\['(?P<quoted>[^']+)'\]|\[(?P<index>-?\d+)\]|\[(?P<all>\*)\]"
    r"|\[\?\(@\.(?P<key>\w+)\s*==\s*['\"](?P<value>[^'\"]*)['\"]\)\]"
)


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column: a heading and the path of its value."""

    heading: str
    path: str
    type: str = "string"
    wide: bool = False


def json_path(document: Any, path: str) -> list[Any]:
    """Return the values at a path such as `.status.conditions[?(@.type=='Ready')].status`. Raises InvalidInput."""
    path = path.strip().removeprefix("{").removesuffix("}").removeprefix("$")
    values, position = [document], 0
    while position < len(path):
        step = _STEP.match(path, position)
        if step is None:
            raise InvalidInput(
                f"path {path!r} cannot be read at {path[position:]!r}; use .name, [0], [*] or [?(@.a=='b')]"
            )
        values = [found for value in values for found in _take(value, step)]
        position = step.end()
    return values


def _take(value: Any, step: re.Match[str]) -> list[Any]:
    name = step["name"] or step["quoted"]
    if name is not None:
        return [value[name]] if isinstance(value, dict) and name in value else []
    if not isinstance(value, list):
        return []
    if step["index"] is not None:
        return value[int(step["index"]) :][:1]
    if step["all"] is not None:
        return list(value)
    return [item for item in value if isinstance(item, dict) and str(item.get(step["key"])) == step["value"]]


def _more(*columns: tuple[str, str] | tuple[str, str, str]) -> tuple[Column, ...]:
    return tuple(Column(heading=column[0], path=column[1], type=(*column, "string")[2]) for column in columns)


_AGE = Column(heading="AGE", path=".metadata.creationTimestamp", type="date")
_OTHERS: dict[str, tuple[Column, ...]] = {
    "RayJob": _more(("STATUS", ".status.jobDeploymentStatus"), ("JOB", ".status.jobStatus")),
    "RayService": _more(("STATUS", ".status.serviceStatus"), ("ENDPOINTS", ".status.numServeEndpoints")),
    "Deployment": _more(
        ("READY", ".status.readyReplicas"), ("WANTED", ".spec.replicas"), ("AVAILABLE", ".status.availableReplicas")
    ),
    "Job": _more(("ACTIVE", ".status.active"), ("SUCCEEDED", ".status.succeeded"), ("FAILED", ".status.failed")),
    "Service": _more(("TYPE", ".spec.type"), ("ADDRESS", ".spec.clusterIP"), ("PORTS", ".spec.ports[*].port")),
    "EndpointSlice": _more(
        ("ADDRESS", ".endpoints[0].addresses[0]"),
        ("PORTS", ".ports[*].port"),
        ("READY", ".endpoints[0].conditions.ready"),
        ("TERMINATING", ".endpoints[0].conditions.terminating"),
    ),
    "Event": _more(
        ("LAST", ".lastTimestamp", "date"),
        ("TYPE", ".type"),
        ("REASON", ".reason"),
        ("KIND", ".involvedObject.kind"),
        ("OBJECT", ".involvedObject.name"),
        ("COUNT", ".count"),
        ("MESSAGE", ".message"),
    ),
}


def columns_of(kind: Kind, *, wide: bool) -> tuple[Column, ...]:
    """Return the columns of a kind, without its name."""
    for resource in RESOURCES:
        if resource.kind_name == kind.kind:
            return tuple(
                Column(heading=column.name.upper(), path=column.json_path, type=column.type)
                for column in resource.columns
                if wide or column.priority == 0
            )
    if kind.kind == "Event":
        return _OTHERS["Event"]
    return (*_OTHERS.get(kind.kind, ()), _AGE)


def cells(manifest: Manifest, columns: Sequence[Column], *, now: datetime) -> list[str]:
    """Return one row."""
    return [_cell(json_path(manifest, column.path), column, now) for column in columns]


def _cell(values: list[Any], column: Column, now: datetime) -> str:
    if not values or values == [None]:
        return ""
    if column.type == "date":
        return age(str(values[0]), now)
    if column.type == "number" and isinstance(values[0], (int, float)):
        return f"{values[0]:.4g}"
    return ",".join(str(value).lower() if isinstance(value, bool) else str(value) for value in values)


def age(timestamp: str, now: datetime) -> str:
    """Return how long ago a time was, as kubectl does: 45s, 12m, 3h, 9d."""
    seconds = max(0, int((now - datetime.fromisoformat(timestamp).astimezone(UTC)).total_seconds()))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= 2 * size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"
