"""CEL rules of a resource, evaluated as the API server does: values typed by the schema, `oldSelf` only on an update."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import pairwise
from typing import Any

import celpy
from celpy import celtypes
from celpy.evaluation import CELEvalError

Schema = dict[str, Any]
Evaluate = Callable[[dict[str, Any]], Any]


def _is_sorted(items: Any) -> Any:
    return celtypes.BoolType(all(first <= second for first, second in pairwise(items)))


@lru_cache(maxsize=256)
def _program(rule: str) -> Evaluate:
    environment = celpy.Environment()
    program = environment.program(environment.compile(rule), functions={"isSorted": _is_sorted})
    evaluate: Evaluate = program.evaluate
    return evaluate


def uses_old(rule: str) -> bool:
    """Return whether the rule compares with what was there before."""
    return re.search(r"\boldSelf\b", rule) is not None


def broken_rules(schema: Schema, value: Any, old: Any, at: str = "") -> Iterator[tuple[str, str]]:
    """Yield the path and message of each rule that does not hold. `old` is None where nothing was before."""
    # What has not changed is not judged again, as in the API server, which so lets old objects outlive a new rule.
    if value is None or (old is not None and value == old):
        return
    for rule in schema.get("x-kubernetes-validations", ()):
        if (old is not None or not uses_old(rule["rule"])) and not _holds(rule["rule"], schema, value, old):
            yield at, rule["message"]
    if isinstance(value, dict):
        inside = schema.get("additionalProperties")
        for name, child in value.items():
            child_schema = schema.get("properties", {}).get(name, inside)
            if isinstance(child_schema, dict):
                before = old.get(name) if isinstance(old, dict) else None
                yield from broken_rules(child_schema, child, before, f"{at}.{name}" if at else name)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            # The items of a list without keys cannot be told apart over time, so they have no `oldSelf`.
            yield from broken_rules(schema["items"], item, None, f"{at}[{index}]")


def _holds(rule: str, schema: Schema, value: Any, old: Any) -> bool:
    variables = {"self": cel_value(schema, value)}
    if uses_old(rule):
        variables["oldSelf"] = cel_value(schema, old)
    try:
        return bool(_program(rule)(variables))
    except CELEvalError:
        # The API server refuses an object on which a rule cannot be evaluated, too.
        return False


def cel_value(schema: Schema | None, value: Any) -> Any:
    """Return the value with the CEL type that its schema gives: 1 is a double where the schema says number."""
    if value is None:
        return None
    if isinstance(value, dict):
        return celtypes.MapType(
            {celtypes.StringType(name): cel_value(_child(schema, name), child) for name, child in value.items()}
        )
    if isinstance(value, list):
        return celtypes.ListType([cel_value((schema or {}).get("items"), item) for item in value])
    if isinstance(value, bool):
        return celtypes.BoolType(value)
    if isinstance(value, str):
        return celtypes.StringType(value)
    if isinstance(value, float) or (schema or {}).get("type") == "number":
        return celtypes.DoubleType(value)
    return celtypes.IntType(value)


def _child(schema: Schema | None, name: str) -> Schema | None:
    if schema is None:
        return None
    # Of the metadata a rule may read the name only, and the schema says no more than that it is an object.
    child = schema.get("properties", {}).get(name, schema.get("additionalProperties"))
    return child if isinstance(child, dict) else None
