"""The generated CRDs: structural, small, current, and saying what the models say."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from belvedere_platform.resources import RESOURCES, Resource
from belvedere_platform.resources.crd import (
    LARGEST_FILE_BYTES,
    crd,
    file_name,
    main,
    render,
    schema_of,
    structural_problems,
)
from belvedere_platform.resources.rules import uses_old
from belvedere_platform.resources.validation import problems, with_defaults
from belvedere_platform.store.fields import list_keys
from belvedere_platform.store.kinds import KINDS

FOLDER = Path(__file__).parents[3] / "helm" / "belvedere" / "files" / "crds"
each_resource = pytest.mark.parametrize("resource", RESOURCES, ids=lambda resource: resource.kind_name)


def nodes(schema: dict[str, Any], at: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Yield every part of a schema with its path."""
    yield at, schema
    for name, child in schema.get("properties", {}).items():
        yield from nodes(child, (*at, f"f:{name}"))
    for name in ("items", "additionalProperties"):
        if isinstance(schema.get(name), dict):
            yield from nodes(schema[name], (*at, "k:{}"))


@each_resource
def test_the_schema_is_structural(resource: type[Resource]) -> None:
    assert list(structural_problems(schema_of(resource))) == []


@pytest.mark.parametrize(
    ("broken", "problem"),
    [
        ({"type": "object"}, "says nothing of its fields"),
        ({"type": "array"}, "has no items"),
        ({"properties": {}}, "has the type None"),
        ({"type": "object", "properties": {}, "additionalProperties": {"type": "string"}}, "has both"),
        ({"type": "string", "anyOf": []}, "has anyOf"),
        ({"type": "object", "properties": {}, "required": ["a"]}, "requires a"),
        ({"type": "object", "properties": {"a": {"$ref": "b", "type": "string"}}}, r"a has \$ref"),
        (
            {
                "type": "array",
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["type"],
                "items": {"type": "object", "properties": {"type": {"type": "string"}}},
            },
            "told apart by type",
        ),
    ],
)
def test_what_is_not_structural_is_found(broken: dict[str, Any], problem: str) -> None:
    with pytest.raises(AssertionError, match=problem):
        assert "; ".join(structural_problems(broken)) == ""


@each_resource
def test_names_agree_with_the_kind(resource: type[Resource]) -> None:
    (kind,) = [kind for kind in KINDS if kind.kind == resource.kind_name]
    names = crd(resource)["spec"]["names"]
    assert (names["plural"], tuple(names["shortNames"])) == (kind.plural, kind.short_names)
    assert names["categories"] == ["all", "belvedere"]
    assert crd(resource)["metadata"]["name"] == f"{kind.plural}.{kind.group}"


@each_resource
def test_every_default_is_valid_as_it_stands(resource: type[Resource]) -> None:
    """The API server checks a default before it fills in what is inside it where there are rules, and after otherwise."""
    for at, node in nodes(schema_of(resource)):
        if "default" in node:
            assert list(problems(node, with_defaults(node, copy.deepcopy(node["default"])))) == [], at
            if "x-kubernetes-validations" in node:
                assert node["default"] == with_defaults(node, copy.deepcopy(node["default"])), at


@each_resource
def test_a_status_has_no_defaults(resource: type[Resource]) -> None:
    assert [at for at, node in nodes(schema_of(resource)["properties"]["status"]) if "default" in node] == []


@each_resource
def test_lists_with_keys_are_those_that_the_embedded_store_merges(resource: type[Resource]) -> None:
    for at, node in nodes(schema_of(resource)):
        if node.get("type") == "array":
            assert list_keys(at) == (
                tuple(node["x-kubernetes-list-map-keys"]) if "x-kubernetes-list-type" in node else None
            )


@each_resource
def test_printer_columns_and_scale_read_fields_that_exist(resource: type[Resource]) -> None:
    (version,) = crd(resource)["spec"]["versions"]
    paths = [column["jsonPath"] for column in version["additionalPrinterColumns"]]
    paths += list(version["subresources"].get("scale", {}).values())
    for path in paths:
        node = schema_of(resource)
        for name in path.partition("[")[0].lstrip(".").split("."):
            if name == "metadata":
                break
            assert name in node["properties"], path
            node = node["properties"][name]


@each_resource
def test_transition_rules_stand_where_the_old_value_is_known(resource: type[Resource]) -> None:
    """Not inside lists: the API server refuses `oldSelf` there unless the items have keys."""
    for at, node in nodes(schema_of(resource)):
        if any(uses_old(rule["rule"]) for rule in node.get("x-kubernetes-validations", ())):
            assert not any(element.startswith("k:") for element in at)


@each_resource
def test_every_part_of_a_spec_is_described_where_it_groups_fields(resource: type[Resource]) -> None:
    for at, node in nodes(schema_of(resource)):
        if "properties" in node and at:
            assert node.get("description"), at


@each_resource
def test_the_written_file_is_current_and_small(resource: type[Resource]) -> None:
    text = (FOLDER / file_name(resource)).read_text()
    assert text == render(resource), "write it anew: python -m belvedere_platform.resources.crd --write"
    assert len(text.encode()) < LARGEST_FILE_BYTES
    assert yaml.safe_load(text) == crd(resource)


def test_check_tells_which_files_are_stale(tmp_path: Path) -> None:
    run = CliRunner()
    assert run.invoke(main, ["--write", str(tmp_path)]).exit_code == 0
    assert run.invoke(main, ["--check", str(tmp_path)]).exit_code == 0
    (tmp_path / "belvedere.dev_engines.yaml").write_text("old")
    checked = run.invoke(main, ["--check", str(tmp_path)])
    assert checked.exit_code == 1
    assert "belvedere.dev_engines.yaml" in checked.output
    assert run.invoke(main, []).exit_code == 2
