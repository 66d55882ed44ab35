"""What a field of a resource means, in words: type, description, default, what is allowed, rules and an example."""

from __future__ import annotations

from typing import Any

import yaml

from belvedere_platform.errors import InvalidInput
from belvedere_platform.resources import RESOURCES
from belvedere_platform.resources.base import API_VERSION, Resource
from belvedere_platform.resources.crd import Schema
from belvedere_platform.resources.validation import schemas, with_defaults

_ENVELOPE = {
    "apiVersion": f"The version of the API: {API_VERSION}.",
    "kind": "The kind of object.",
    "metadata": "Name, namespace, labels and annotations, as for every Kubernetes object.",
}


def explain(path: str) -> str:
    """Return what is known of a field, for example `modelservice.spec.rollout.steps`. Raises InvalidInput for an unknown one."""
    kind, *names = path.split(".")
    resource = _resource(kind)
    node, required, walked = schemas()[resource.kind_name], True, [resource.kind_name.lower()]
    for name in names:
        inside = _inside(node)
        properties = inside.get("properties", {})
        if name in properties:
            required, node = name in inside.get("required", ()), properties[name]
        elif isinstance(inside.get("additionalProperties"), dict):
            required, node = False, inside["additionalProperties"]
        else:
            fields = f"its fields are {', '.join(properties)}" if properties else "it has no fields"
            raise InvalidInput(f"{'.'.join(walked)} has no field {name!r}; {fields}")
        walked.append(name)
    return _text(resource, walked, node, required=required)


def _resource(name: str) -> type[Resource]:
    wanted = name.lower()
    for resource in RESOURCES:
        if wanted in (resource.kind_name.lower(), resource.plural, *resource.short_names):
            return resource
    known = ", ".join(resource.kind_name.lower() for resource in RESOURCES)
    raise InvalidInput(f"{name!r} is not a resource of {API_VERSION}; known are {known}")


def _inside(node: Schema) -> Schema:
    while node["type"] == "array":
        node = node["items"]
    return node


def _text(resource: type[Resource], walked: list[str], node: Schema, *, required: bool) -> str:
    lines = [f"{'.'.join(walked)} <{type_name(node)}>{' required' if required and len(walked) > 1 else ''}"]
    description = node.get("description") or _ENVELOPE.get(walked[-1] if len(walked) == 2 else "", "")
    if description:
        lines.append(f"  {description}")
    if "default" in node:
        lines.append(f"  default: {_inline(with_defaults(node, node['default']))}")
    lines += [f"  allowed: {text}" for text in _allowed(node)]
    lines += [f"  rule: {rule['message']}" for rule in _rules(node)]
    if walked[1:] == ["status", "conditions"]:
        lines += [f"  {type_}: {reasons}" for type_, reasons in resource.conditions.items()]
    properties = _inside(node).get("properties", {})
    needed = _inside(node).get("required", ())
    if properties:
        width = max(map(len, properties))
        lines.append("fields:")
        for name, child in properties.items():
            mark = " (required)" if name in needed else ""
            about = child.get("description", "")
            lines.append(f"  {name:<{width}}  <{type_name(child)}>{mark}{'  ' + about if about else ''}")
    if len(walked) > 1 and walked[1] == "spec":
        example = yaml.safe_dump({walked[-1]: example_of(node)}, sort_keys=False, allow_unicode=True)
        lines += ["example:", *(f"  {line}" for line in example.splitlines())]
    return "\n".join(lines)


def type_name(node: Schema) -> str:
    """Return the type of a field as one reads it, for example `list of maps`."""
    if node["type"] == "array":
        return f"list of {type_name(node['items'])}"
    if node["type"] == "object":
        values = node.get("additionalProperties")
        return f"map of {type_name(values)}" if isinstance(values, dict) else "object"
    return str(node["type"])


def _allowed(node: Schema) -> list[str]:
    texts = []
    if "enum" in node:
        texts.append(", ".join(map(str, node["enum"])))
    low, high = node.get("minimum"), node.get("maximum")
    if low is not None:
        texts.append(f"greater than {low}" if node.get("exclusiveMinimum") else f"at least {low}")
    if high is not None:
        texts.append(f"less than {high}" if node.get("exclusiveMaximum") else f"at most {high}")
    for name, text in (
        ("minItems", "at least {} entries"),
        ("maxItems", "at most {} entries"),
        ("minLength", "at least {} characters"),
        ("maxLength", "at most {} characters"),
        ("pattern", "matches {}"),
    ):
        if name in node:
            texts.append(text.format(node[name]))
    if node.get("nullable"):
        texts.append("null")
    return texts


def _rules(node: Schema) -> list[dict[str, str]]:
    rules: list[dict[str, str]] = node.get("x-kubernetes-validations", [])
    return rules + (_rules(node["items"]) if node["type"] == "array" else [])


def example_of(node: Schema) -> Any:
    """Return a value that the schema allows: its default, or the smallest that holds every required field."""
    if "default" in node:
        return with_defaults(node, node["default"])
    if node["type"] == "object":
        needed = node.get("required", ())
        given = {name: example_of(child) for name, child in node.get("properties", {}).items() if name in needed}
        return with_defaults(node, given)
    if node["type"] == "array":
        return [example_of(node["items"])]
    if "enum" in node:
        return node["enum"][0]
    return _scalar_example(node)


def _scalar_example(node: Schema) -> Any:
    if node["type"] == "boolean":
        return True
    if node["type"] == "string":
        if "sha256" in node.get("pattern", ""):
            return "sha256:" + "0" * 64
        if node.get("pattern", "").startswith("^/"):
            return "/example"
        return "2026-01-31T12:00:00Z" if node.get("format") == "date-time" else "example"
    low, high = node.get("minimum", 0), node.get("maximum")
    if node["type"] == "integer":
        return low + 1 if node.get("exclusiveMinimum") else low
    if high is not None:
        return (low + high) / 2
    return low + 1 if node.get("exclusiveMinimum") else low


def _inline(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000).removesuffix("\n...\n").strip()
