"""What two objects have in common is kept once, and neither is another object for it."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from belvedere_operators.runtime.copies import Copies
from belvedere_operators.runtime.sharing import shared

NAMES = st.sampled_from("abc")
SCALARS = st.none() | st.booleans() | st.integers(0, 1) | st.sampled_from([0.0, 1.0]) | NAMES
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3))


def text(value: Any) -> str:
    """Return it as JSON, in which 1, 1.0 and true differ."""
    return json.dumps(value, sort_keys=True)


@given(manifest=VALUES, other=VALUES)
def test_it_stays_what_it_was_and_the_other_too(manifest: Any, other: Any) -> None:
    before = text(manifest), text(other)
    made = shared(copy.deepcopy(manifest), other)
    assert (text(made), text(other)) == before


@given(manifest=VALUES)
def test_of_what_is_equal_one_is_kept(manifest: Any) -> None:
    other = copy.deepcopy(manifest)
    assert shared(manifest, other) is other


def service(name: str, version: int, replicas: int = 1) -> dict[str, Any]:
    template = {"containers": [{"name": "main", "image": "belvedere", "env": [{"name": "SERVICE", "value": name}]}]}
    metadata = {"name": name, "namespace": "team", "resourceVersion": str(version)}
    return {"metadata": metadata, "spec": {"replicas": replicas, "probe": {"periodSeconds": 5}, "template": template}}


def test_copies_of_different_objects_have_common_parts() -> None:
    copies = Copies()
    for number, name in enumerate(("one", "two")):
        copies.put(service(name, number))
    one, two = copies.all()
    assert (one, two) == (service("one", 0), service("two", 1))
    assert one["spec"]["probe"] is two["spec"]["probe"]
    copies.put(service("one", 2, replicas=3))
    changed = copies.select("team", {})[0]
    assert changed == service("one", 2, replicas=3)
    assert changed["spec"]["template"] is one["spec"]["template"]
    assert one == service("one", 0)
