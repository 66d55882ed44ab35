"""CustomResourceDefinitions from the pydantic models: one structural schema a resource, with defaults and CEL rules."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import yaml
from pydantic.json_schema import GenerateJsonSchema

from belvedere_platform.resources import RESOURCES
from belvedere_platform.resources.base import GROUP, VERSION, Resource

Schema = dict[str, Any]

LARGEST_FILE_BYTES = 100_000
HEADER = "# Generated from belvedere_platform.resources by `python -m belvedere_platform.resources.crd --write`: do not edit.\n"
NAME_RULE = {
    "rule": "size(self.metadata.name) <= 63",
    "message": "metadata.name must have at most 63 characters: it becomes a label",
}
_KEPT = (
    "type", "format", "enum", "pattern", "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems",
    "minProperties", "maxProperties", "x-kubernetes-list-type", "x-kubernetes-list-map-keys", "x-kubernetes-validations",
)  # fmt: skip


class _ModelSchema(GenerateJsonSchema):
    """JSON Schema of the models, with each class's CEL rules beside its fields."""

    def model_schema(self, schema: Any) -> dict[str, Any]:
        result = super().model_schema(schema)
        rules = getattr(schema["cls"], "cel", ())
        if rules:
            result["x-kubernetes-validations"] = [
                {"rule": rule.rule, "message": rule.message}
                | ({"fieldPath": rule.field_path} if rule.field_path else {})
                for rule in rules
            ]
        return result


def schema_of(resource: type[Resource]) -> Schema:
    """Return the structural OpenAPI v3 schema of a resource."""
    document = resource.model_json_schema(by_alias=True, schema_generator=_ModelSchema)
    definitions = document.get("$defs", {})
    properties = document["properties"]
    return {
        "type": "object",
        "description": _sentence(resource.__doc__ or resource.kind_name),
        "required": ["spec"],
        "x-kubernetes-validations": [NAME_RULE],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": _structural(properties["spec"], definitions, defaults=True),
            # A status says what was observed, so nothing is filled in there.
            "status": _structural(properties["status"], definitions, defaults=False),
        },
    }


def _structural(node: Schema, definitions: dict[str, Schema], *, defaults: bool) -> Schema:
    """Return a node as Kubernetes takes it: no $ref, no anyOf, null only where it means something else than absence."""
    node, nullable = _resolved(node, definitions)
    result: Schema = {}
    if "description" in node:
        result["description"] = _sentence(node["description"])
    result |= {name: node[name] for name in _KEPT if name in node}
    if "const" in node:
        result["enum"] = [node["const"]]
    for bound, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if exclusive in node:
            result[bound], result[exclusive] = node[exclusive], True
    if nullable:
        result["nullable"] = True
    if defaults and node.get("default") not in (None, [], {}):
        result["default"] = _default(node["default"])
    if "items" in node:
        result["items"] = _structural(node["items"], definitions, defaults=defaults)
    if result["type"] == "object":
        result |= _members(node, definitions, defaults=defaults)
        # The API server checks a default against the rules before it fills in what is inside it.
        ruled = "x-kubernetes-validations" in result
        if "properties" in result and "default" in result and not ruled and result["default"] == _filled(result, {}):
            result["default"] = {}
    return result


def _members(node: Schema, definitions: dict[str, Schema], *, defaults: bool) -> Schema:
    if "properties" in node:
        members: Schema = {"required": node["required"]} if node.get("required") else {}
        members["properties"] = {
            name: _structural(child, definitions, defaults=defaults) for name, child in node["properties"].items()
        }
        return members
    values = node.get("additionalProperties")
    if isinstance(values, dict) and values:
        return {"additionalProperties": _structural(values, definitions, defaults=defaults)}
    return {"x-kubernetes-preserve-unknown-fields": True}


def _resolved(node: Schema, definitions: dict[str, Schema]) -> tuple[Schema, bool]:
    """Return the node with its reference put in place, and whether null is a value of its own.

    Null is that only for a required field and for one with another default; otherwise leaving the field out says it.
    """
    null = False
    if "anyOf" in node:
        variants = [variant for variant in node["anyOf"] if variant.get("type") != "null"]
        assert len(variants) == 1, f"a union cannot be structural: {node}"
        null = len(variants) < len(node["anyOf"]) and node.get("default", ...) is not None
        node = variants[0] | {name: value for name, value in node.items() if name != "anyOf"}
    if "$ref" in node:
        target = definitions[node["$ref"].removeprefix("#/$defs/")]
        node = target | {name: value for name, value in node.items() if name != "$ref"}
    return node, null


def _default(value: Any) -> Any:
    """Return a default without what absence says as well: nulls, empty lists and empty maps."""
    if isinstance(value, dict):
        return {name: _default(child) for name, child in value.items() if child not in (None, [], {})}
    if isinstance(value, list):
        return [_default(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _filled(schema: Schema, value: Schema) -> Schema:
    """Return the value with the defaults of the properties it lacks, as the API server fills them in."""
    filled = dict(value)
    for name, child in schema["properties"].items():
        if name not in filled and "default" in child:
            default = child["default"]
            filled[name] = _filled(child, default) if "properties" in child and default is not None else default
    return filled


def _sentence(text: str) -> str:
    return " ".join(text.split())


def crd(resource: type[Resource]) -> Schema:
    """Return the CustomResourceDefinition of a resource."""
    subresources: Schema = {"status": {}}
    if resource.scale is not None:
        subresources["scale"] = dict(resource.scale)
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{resource.plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": resource.kind_name,
                "listKind": f"{resource.kind_name}List",
                "plural": resource.plural,
                "singular": resource.kind_name.lower(),
                "shortNames": list(resource.short_names),
                "categories": ["all", "belvedere"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": schema_of(resource)},
                    "subresources": subresources,
                    "additionalPrinterColumns": [_column(column) for column in resource.columns],
                }
            ],
        },
    }


def _column(column: Any) -> Schema:
    result = {"name": column.name, "type": column.type, "jsonPath": column.json_path}
    if column.description:
        result["description"] = column.description
    return result | ({"priority": column.priority} if column.priority else {})


def structural_problems(node: Schema, at: str = "") -> Iterator[str]:
    """Yield what keeps a schema from being structural, or its list and map declarations from being sound."""
    where = at or "the root"
    for forbidden in ("$ref", "anyOf", "oneOf", "allOf", "not", "title", "const", "definitions"):
        if forbidden in node:
            yield f"{where} has {forbidden}"
    if node.get("type") not in ("object", "array", "string", "integer", "number", "boolean"):
        yield f"{where} has the type {node.get('type')!r}"
    if "properties" in node and "additionalProperties" in node:
        yield f"{where} has both properties and additionalProperties"
    if node.get("type") == "object" and not at.endswith("metadata") and not _says_what_is_inside(node):
        yield f"{where} is an object that says nothing of its fields"
    if node.get("type") == "array" and "items" not in node:
        yield f"{where} has no items"
    if node.get("x-kubernetes-list-type") == "map":
        items = node.get("items", {})
        for key in node.get("x-kubernetes-list-map-keys", ()):
            if key not in items.get("required", ()) and "default" not in items.get("properties", {}).get(key, {}):
                yield f"{where} is told apart by {key}, which is neither required nor has a default"
    for name, child in node.get("properties", {}).items():
        yield from structural_problems(child, f"{at}.{name}" if at else name)
    for name in ("items", "additionalProperties"):
        if isinstance(node.get(name), dict):
            yield from structural_problems(node[name], f"{at}[]")
    missing = set(node.get("required", ())) - set(node.get("properties", {}))
    if missing:
        yield f"{where} requires {', '.join(sorted(missing))}, which it does not have"


def _says_what_is_inside(node: Schema) -> bool:
    return any(name in node for name in ("properties", "additionalProperties", "x-kubernetes-preserve-unknown-fields"))


def file_name(resource: type[Resource]) -> str:
    """Return the name of the file that the CRD of a resource is written to."""
    return f"{GROUP}_{resource.plural}.yaml"


class _Dumper(yaml.SafeDumper):
    """Writes equal parts out each time: kubectl reads anchors, people do not."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def render(resource: type[Resource]) -> str:
    """Return the CRD of a resource as YAML."""
    text = HEADER + yaml.dump(crd(resource), Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)
    assert len(text.encode()) < LARGEST_FILE_BYTES, f"the CRD of {resource.kind_name} is too large"
    return text


@click.command()
@click.option("--write", type=click.Path(path_type=Path, file_okay=False), help="Write the CRDs into this folder.")
@click.option("--check", type=click.Path(path_type=Path, file_okay=False), help="Fail when a CRD there is not current.")
def main(write: Path | None, check: Path | None) -> None:
    """Write the CRDs of all resources, or check that those written are current."""
    if (write is None) == (check is None):
        raise click.UsageError("give either --write DIR or --check DIR")
    folder = write or check
    assert folder is not None
    stale = []
    for resource in RESOURCES:
        path, text = folder / file_name(resource), render(resource)
        if write is not None:
            folder.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            stale.append(str(path))
    if stale:
        click.echo(f"not current: {', '.join(stale)}; write them anew with --write {folder}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
