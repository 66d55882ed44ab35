"""Which manager gave which field, and how an applied manifest is merged into the object that is there.

A path is a tuple of `f:NAME` (field), `k:{"type": "Ready"}` (item of a list with keys) and `v:"x"` (item of a set), as in
Kubernetes' FieldsV1. A manager owns the leaves of what it applied: scalars, whole lists without keys, empty maps, and items.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from belvedere_platform.errors import Conflict, InvalidInput

Path = tuple[str, ...]
Fields = frozenset[Path]
Ownership = Mapping[str, Fields]

_SET: tuple[str, ...] = ()
_WHOLE_PATHS: dict[tuple[str, ...], tuple[str, ...]] = {
    ("metadata", "finalizers"): _SET,
    ("metadata", "ownerReferences"): ("uid",),
    ("status", "conditions"): ("type",),
}
_POD_LISTS: dict[str, tuple[str, ...]] = {
    "containers": ("name",),
    "env": ("name",),
    "initContainers": ("name",),
    "volumeMounts": ("mountPath",),
    "volumes": ("name",),
}


def list_keys(at: Path) -> tuple[str, ...] | None:
    """Return the fields that tell the items of a list apart, an empty tuple for a set, None for a list that is one value."""
    names = tuple(element[2:] for element in at if element.startswith("f:"))
    if names in _WHOLE_PATHS:
        return _WHOLE_PATHS[names]
    return _POD_LISTS.get(names[-1]) if names[:1] == ("spec",) else None


def readable(path: Path) -> str:
    """Return a path as a person writes it, for example `status.conditions[type=Ready].reason`."""
    text = ""
    for element in path:
        sort, value = element[0], element[2:]
        if sort == "f":
            text += f".{value}" if text else value
        elif sort == "k":
            text += "[" + ",".join(f"{name}={item}" for name, item in json.loads(value).items()) + "]"
        else:
            text += f"[{json.loads(value)}]"
    return text


def item_element(keys: tuple[str, ...], item: Any, at: Path) -> str:
    """Return the path element of one item of a list with keys or of a set."""
    if keys == _SET:
        return "v:" + json.dumps(item)
    if not isinstance(item, dict):
        raise InvalidInput(f"{readable(at)} has the item {item!r}; each item must be a map with {', '.join(keys)}")
    missing = [name for name in keys if name not in item]
    if missing:
        raise InvalidInput(f"{readable(at)} has an item without {missing[0]}; the items are told apart by it: add it")
    return "k:" + json.dumps({name: item[name] for name in keys})


def items_by_element(keys: tuple[str, ...], items: list[Any], at: Path) -> dict[str, Any]:
    """Return the items of a list with keys, by path element. Raises InvalidInput for two with the same keys."""
    by_element: dict[str, Any] = {}
    for item in items:
        element = item_element(keys, item, at)
        if element in by_element:
            raise InvalidInput(f"{readable((*at, element))} is there twice: leave one of them out")
        by_element[element] = item
    return by_element


def leaves(value: Any, at: Path = ()) -> Iterator[Path]:
    """Yield the paths that a manager owns when it applies this value."""
    keys = list_keys(at) if isinstance(value, list) else None
    if isinstance(value, dict) and value:
        for name, child in value.items():
            yield from leaves(child, (*at, f"f:{name}"))
    elif keys is not None and value:
        for element, item in items_by_element(keys, value, at).items():
            yield (*at, element)
            if keys:
                yield from leaves(item, (*at, element))
    elif at:
        yield at


def merge(live: Any, config: Any, at: Path = ()) -> Any:
    """Return the live value with the applied one laid over it. Lists with keys are merged item by item."""
    if isinstance(live, dict) and isinstance(config, dict):
        merged = dict(live)
        for name, value in config.items():
            merged[name] = merge(live.get(name), value, (*at, f"f:{name}"))
        return merged
    keys = list_keys(at) if isinstance(live, list) and isinstance(config, list) else None
    if keys is None:
        return config
    by_element = items_by_element(keys, live, at)
    for element, item in items_by_element(keys, config, at).items():
        by_element[element] = merge(by_element.get(element), item, (*at, element))
    return list(by_element.values())


def value_at(value: Any, path: Path) -> tuple[bool, Any]:
    """Return whether the path is there, and its value. Of maps and items only the presence counts, so their value is None."""
    at: Path = ()
    for element in path:
        if element.startswith("f:"):
            if not isinstance(value, dict) or element[2:] not in value:
                return False, None
            value = value[element[2:]]
        else:
            if not isinstance(value, list):
                return False, None
            by_element = items_by_element(list_keys(at) or _SET, value, at)
            if element not in by_element:
                return False, None
            value = by_element[element]
        at = (*at, element)
    return True, None if isinstance(value, dict) or not path[-1].startswith("f:") else value


def present(owned: Ownership, manifest: dict[str, Any]) -> dict[str, Fields]:
    """Return the owners without the fields that are not there: nulls that the schema has taken out."""
    there = {
        manager: frozenset(path for path in fields if value_at(manifest, path)[0]) for manager, fields in owned.items()
    }
    return {manager: fields for manager, fields in there.items() if fields}


def remove(value: Any, path: Path, keep: Fields, at: Path = ()) -> Any:
    """Return the value without the path, and without the maps and lists on the way that this left empty."""
    element, rest, here = path[0], path[1:], (*at, path[0])
    if element.startswith("f:"):
        name = element[2:]
        if not isinstance(value, dict) or name not in value:
            return value
        child = remove(value[name], rest, keep, here) if rest else None
        if rest and (child or child == value[name] or here in keep or not isinstance(child, dict | list)):
            return {**value, name: child}
        return {other: item for other, item in value.items() if other != name}
    if not isinstance(value, list):
        return value
    by_element = items_by_element(list_keys(at) or _SET, value, at)
    if element in by_element:
        if rest:
            by_element[element] = remove(by_element[element], rest, keep, here)
        else:
            del by_element[element]
    return list(by_element.values())


def apply_fields(
    live: dict[str, Any], config: dict[str, Any], *, owned: Ownership, manager: str, force: bool
) -> tuple[dict[str, Any], dict[str, Fields]]:
    """Return the live object with the config applied by a manager, and who owns what then.

    Fields that the manager gave before and leaves out now are removed, unless another manager owns them too.
    Raises Conflict, unless forced, for fields that another manager owns with another value.
    """
    config = _without_idle_nulls(config, live)
    given = frozenset(leaves(config))
    given_above = _with_above(given)
    merged = merge(live, config)
    owned_after = {other: fields for other, fields in owned.items() if other != manager}
    for other, fields in list(owned_after.items()):
        touched = (
            path for path in fields if path in given_above or any(path[:end] in given for end in range(len(path)))
        )
        lost = {path for path in touched if value_at(live, path) != value_at(merged, path)}
        if lost and not force:
            names = ", ".join(sorted(readable(path) for path in lost))
            raise Conflict(f"{other.partition(':')[0]} owns {names} with another value: apply with force to take over")
        owned_after[other] = fields - lost
    others = frozenset[Path]().union(*owned_after.values())
    kept = given_above | _with_above(others)
    # Shortest first: an item goes whole before its key fields could be taken out of it.
    for path in sorted(owned.get(manager, frozenset()) - kept, key=len):
        merged = remove(merged, path, given | others)
    owned_after[manager] = given
    return merged, {other: fields for other, fields in owned_after.items() if fields}


def _without_idle_nulls(config: Any, live: Any) -> Any:
    """Return the config without the nulls over fields that have a value: to the API server these say nothing."""
    if not isinstance(config, dict):
        return config
    values = live if isinstance(live, dict) else {}
    return {
        name: _without_idle_nulls(value, values.get(name))
        for name, value in config.items()
        if value is not None or values.get(name) is None
    }


def _with_above(fields: Fields) -> Fields:
    """Return the fields and every path above one of them."""
    return frozenset(path[:end] for path in fields for end in range(1, len(path) + 1))
