"""Turn what a user wrote into a settings object, or say in one sentence what is wrong with it and what was meant."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from belvedere_platform.errors import InvalidInput

Settings = TypeVar("Settings", bound=BaseModel)


def parse(kind: type[Settings], data: Mapping[str, Any], *, where: str) -> Settings:
    """Return the settings; InvalidInput names every wrong field, its value, and the nearest right key."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise InvalidInput("; ".join(_sentence(kind, problem, where) for problem in error.errors())) from error


def _sentence(kind: type[BaseModel], problem: Mapping[str, Any], where: str) -> str:
    location = _without_tags(kind, problem["loc"])
    path = ".".join(str(part) for part in location)
    if problem["type"] == "extra_forbidden":
        allowed = _keys_at(kind, problem["loc"][:-1])
        near = difflib.get_close_matches(str(problem["loc"][-1]), allowed, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"allowed are {', '.join(allowed)}"
        return f"{where}: {path} is not a known key; {hint}"
    if problem["type"] == "missing":
        return f"{where}: {path} is missing"
    said = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error" and isinstance(
        problem["input"], Mapping
    ):  # names the field of it, and its value
        return f"{where}: {path + ': ' if path else ''}{said}"
    return f"{where}: {path} is {problem['input']!r}: {said[0].lower()}{said[1:]}"


def _keys_at(kind: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    """Return the keys that are allowed at this place, as the user writes them."""
    found = _descend(kind, location)
    return [] if found is None else [field.alias or name for name, field in found.model_fields.items()]


def _descend(kind: type[BaseModel], location: tuple[Any, ...]) -> type[BaseModel] | None:
    """Return the model at this place. Where one of several is chosen by its kind, the location names that kind."""
    choices = [kind]
    for part in location:
        tagged = [choice for choice in choices if _tag(choice) == part]
        if len(choices) > 1 and tagged:
            choices = tagged
            continue
        field = next((f for name, f in choices[0].model_fields.items() if part in (name, f.alias)), None)
        choices = [] if field is None else [a for a in _types(field.annotation) if issubclass(a, BaseModel)]
        if not choices:
            return None
    return choices[0]


def _tag(kind: type[BaseModel]) -> Any:
    return kind.model_fields["kind"].default if "kind" in kind.model_fields else None


def _without_tags(kind: type[BaseModel], location: tuple[Any, ...]) -> list[Any]:
    """Return the location as the user wrote it: the name of a chosen kind is not part of it."""
    kept: list[Any] = []
    for number, part in enumerate(location):
        before = _descend(kind, location[:number])
        after = _descend(kind, location[: number + 1])
        if not (before is not None and after is not None and _tag(after) == part and part not in _names(before)):
            kept.append(part)
    return kept


def _names(kind: type[BaseModel]) -> set[Any]:
    return {name for key, field in kind.model_fields.items() for name in (key, field.alias)}


def _types(annotation: Any) -> list[type]:
    if isinstance(annotation, type):
        return [annotation]
    return [found for argument in getattr(annotation, "__args__", ()) for found in _types(argument)]
