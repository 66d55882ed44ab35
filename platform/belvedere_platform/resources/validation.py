"""Whether an object is one that its schema allows: defaults, types, bounds, unknown fields and CEL rules.

The embedded store asks this at every apply, and the command line before it sends anything; on a cluster the API server
reads the same schema from the CRD.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from datetime import datetime
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

from belvedere_platform.errors import InvalidInput
from belvedere_platform.resources import RESOURCES
from belvedere_platform.resources.base import API_VERSION
from belvedere_platform.resources.crd import Schema, schema_of

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
}
_NAMES = {
    "object": "a map",
    "array": "a list",
    "string": "a string",
    "boolean": "true or false",
    "integer": "a whole number",
    "number": "a number",
}


@lru_cache(maxsize=1)
def schemas() -> dict[str, Schema]:
    """Return the schema of each of Belvedere's own kinds, by kind."""
    return {resource.kind_name: schema_of(resource) for resource in RESOURCES}


def admit(manifest: dict[str, Any], old: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the object with its defaults. Raises InvalidInput that lists everything its schema refuses.

    An object of a kind that is not Belvedere's own is returned as it is. `old` is what an update replaces.
    """
    if manifest.get("apiVersion") != API_VERSION:
        return manifest
    kind = str(manifest.get("kind"))
    if kind not in schemas():
        raise InvalidInput(f"kind is {kind!r}; it must be {_one_of(sorted(schemas()))}")
    schema = schemas()[kind]
    filled: dict[str, Any] = with_defaults(schema, manifest)
    found = list(problems(schema, filled))
    if not found:
        # The API server fills in defaults when it reads, too, so a default that is new does not look like a change.
        before = None if old is None else with_defaults(schema, old)
        from belvedere_platform.resources.rules import broken_rules  # CEL takes half a second to import

        found = [f"{at}: {message}" if at else message for at, message in broken_rules(schema, filled, before)]
    if found:
        name = manifest.get("metadata", {}).get("name", "")
        raise InvalidInput(f"{kind} {name}: " + "; ".join(found))
    return filled


def without_nulls(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return an object of Belvedere's own kinds without nulls where null is no value: the API server refuses those."""
    schema = schemas().get(str(manifest.get("kind"))) if manifest.get("apiVersion") == API_VERSION else None
    pruned: dict[str, Any] = manifest if schema is None else _filled(schema, manifest, defaults=False)
    return pruned


def with_defaults(schema: Schema, value: Any) -> Any:
    """Return the value without nulls where null is no value, and with the defaults of what is missing then."""
    return _filled(schema, value, defaults=True)


def _filled(schema: Schema, value: Any, *, defaults: bool) -> Any:
    if isinstance(value, dict):
        properties, inside = schema.get("properties", {}), schema.get("additionalProperties")
        filled = {}
        for name, child in value.items():
            child_schema = properties.get(name, inside)
            if not isinstance(child_schema, dict):
                filled[name] = child
            elif child is not None or child_schema.get("nullable"):
                filled[name] = _filled(child_schema, child, defaults=defaults)
        for name, child_schema in properties.items() if defaults else ():
            if name not in filled and "default" in child_schema:
                filled[name] = _filled(child_schema, copy.deepcopy(child_schema["default"]), defaults=True)
        return filled
    if isinstance(value, list) and "items" in schema:
        return [_filled(schema["items"], item, defaults=defaults) for item in value]
    return value


def problems(schema: Schema, value: Any, at: str = "") -> Iterator[str]:
    """Yield a sentence for each thing that the schema does not allow; CEL rules apart."""
    if value is None and schema.get("nullable"):
        return
    expected = schema["type"]
    if not isinstance(value, _TYPES[expected]) or (isinstance(value, bool) and expected != "boolean"):
        yield f"{at} is {_shown(value)}; it must be {_NAMES[expected]}"
    elif isinstance(value, dict):
        yield from _object_problems(schema, value, at)
    elif isinstance(value, list):
        yield from _list_problems(schema, value, at)
    else:
        allowed = _allowed(schema, value)
        if allowed:
            yield f"{at} is {_shown(value)}; it must {allowed}"


def _object_problems(schema: Schema, value: dict[str, Any], at: str) -> Iterator[str]:
    properties = schema.get("properties", {})
    inside = schema.get("additionalProperties")
    for name in schema.get("required", ()):
        if name not in value:
            yield f"{_join(at, name)} is missing; it must be {_NAMES[properties[name]['type']]}"
    for name, child in value.items():
        child_schema = properties.get(name, inside)
        if isinstance(child_schema, dict):
            yield from problems(child_schema, child, _join(at, name))
        elif properties and not schema.get("x-kubernetes-preserve-unknown-fields"):
            yield _unknown(at, name, list(properties))


def _unknown(at: str, name: str, known: list[str]) -> str:
    near = get_close_matches(name, known, n=1, cutoff=0.6)
    if not near:
        near = [other for other in known if other.lower() == name.replace("_", "").lower()]
    hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(known))}"
    return f"{_join(at, name)} is not a field; {hint}"


def _list_problems(schema: Schema, value: list[Any], at: str) -> Iterator[str]:
    fewest, most = schema.get("minItems", 0), schema.get("maxItems")
    if len(value) < fewest or (most is not None and len(value) > most):
        bounds = f"at least {fewest}" if len(value) < fewest else f"at most {most}"
        yield f"{at} has {len(value)} entries; it must have {bounds}"
    keys = schema.get("x-kubernetes-list-map-keys", ())
    seen = set()
    for index, item in enumerate(value):
        yield from problems(schema["items"], item, f"{at}[{index}]")
        identity = tuple(str(item.get(key)) for key in keys) if isinstance(item, dict) else ()
        if identity and identity in seen:
            yield f"{at}[{index}] repeats {', '.join(f'{key} {part}' for key, part in zip(keys, identity, strict=True))}"
        seen.add(identity)


def _allowed(schema: Schema, value: Any) -> str:
    """Return what the schema allows, as the end of a sentence, when the value is not that; else nothing."""
    if "enum" in schema:
        return "" if value in schema["enum"] else f"be {_one_of([str(choice) for choice in schema['enum']])}"
    if isinstance(value, str):
        return _allowed_string(schema, value)
    if isinstance(value, bool):
        return ""
    low, high = schema.get("minimum"), schema.get("maximum")
    above, below = schema.get("exclusiveMinimum", False), schema.get("exclusiveMaximum", False)
    too_low = low is not None and (value <= low if above else value < low)
    too_high = high is not None and (value >= high if below else value > high)
    # NaN fails every comparison, and JSON has no word for it.
    if not too_low and not too_high and value == value:
        return ""
    bounds = []
    if low is not None:
        bounds.append(f"greater than {low}" if above else f"at least {low}")
    if high is not None:
        bounds.append(f"less than {high}" if below else f"at most {high}")
    return "be " + (" and ".join(bounds) or "a number")


def _allowed_string(schema: Schema, value: str) -> str:
    if len(value) < schema.get("minLength", 0):
        return f"have at least {schema['minLength']} characters"
    if len(value) > schema.get("maxLength", len(value)):
        return f"have at most {schema['maxLength']} characters"
    pattern = schema.get("pattern")
    # In Python `$` also matches before a last line break; in the API server it does not.
    if pattern is not None and not re.search(re.sub(r"\$$", r"\\Z", pattern), value):
        return f"match {pattern}"
    if schema.get("format") == "date-time" and not _is_time(value):
        return "be a time such as 2026-01-31T12:00:00Z"
    return ""


def _is_time(value: str) -> bool:
    try:
        return datetime.fromisoformat(value).tzinfo is not None and "T" in value
    except ValueError:
        return False


def _one_of(choices: list[str]) -> str:
    return choices[0] if len(choices) == 1 else f"{', '.join(choices[:-1])} or {choices[-1]}"


def _shown(value: Any) -> str:
    text = "null" if value is None else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _join(at: str, name: str) -> str:
    return f"{at}.{name}" if at else name
