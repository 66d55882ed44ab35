"""Lineage and garbage: which things hang together, and which may go."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from belvedere_platform.artifacts.garbage import needed
from belvedere_platform.artifacts.layout import ArtifactKind, Descriptor
from belvedere_platform.artifacts.lineage import Edge, Graph, Node, as_dot, as_json, as_tree, lineage_graph

DATA = "sha256:" + "d" * 64
V1, V2, V3 = ("sha256:" + digit * 64 for digit in "123")


def artifact(digest: str, *tags: str, kind: ArtifactKind = ArtifactKind.MODEL) -> Descriptor:
    return Descriptor(
        digest=digest, manifest_size=1, kind=kind, files=(), config_digest=digest, config_size=1, tags=tags
    )


def thing(kind: str, name: str, spec: dict[str, Any], status: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"kind": kind, "metadata": {"name": name, "namespace": "default"}, "spec": spec, "status": status or {}}


def world() -> list[dict[str, Any]]:
    run = {"data": {"dataset": "emoji"}, "optimization": {"pairs": 10}}
    return [
        thing("TrainingRun", "r1", run, {"phase": "Succeeded", "modelVersion": "v1"}),
        thing("TrainingRun", "r2", {**run, "initializeFrom": {"modelVersion": "v1"}}, {"modelVersion": "v2"}),
        thing("ModelVersion", "v1", {"model": "m", "digest": V1, "evaluation": {"passed": True}, "lineage": {"trainingRun": "r1", "dataDigest": DATA}}),
        thing("ModelVersion", "v2", {"model": "m", "digest": V2, "evaluation": {"passed": True}, "lineage": {"trainingRun": "r2", "dataDigest": DATA, "parent": "v1"}}),
        thing("ModelVersion", "v3", {"model": "m", "digest": V3, "evaluation": {"passed": False, "waived": "test"}}),
        thing("Engine", "e1", {"modelVersion": "v1", "target": {"runtime": "onnxruntime", "precision": "int8"}}),
        thing("ModelService", "s", {"version": "v2"}, {"stable": {"version": "v1", "engine": "e1"}, "candidate": {"version": "v2"}}),
    ]  # fmt: skip


def graph() -> Graph:
    return lineage_graph(world(), [artifact(DATA, "datasets/emoji", kind=ArtifactKind.DATASET)])


def links(found: Graph) -> set[tuple[str, str]]:
    def short(id_: str) -> str:
        return id_.split("/")[-1] if "/" in id_ else "data"

    return {(short(edge.source), short(edge.target)) for edge in found.edges}


def test_everything_hangs_together() -> None:
    assert links(graph()) == {
        ("data", "r1"), ("data", "r2"), ("r1", "v1"), ("v1", "r2"), ("r2", "v2"), ("v1", "e1"), ("e1", "s"), ("v2", "s"),
    }  # fmt: skip
    assert graph().nodes[f"dataset:{DATA}"].name == "emoji"


def test_around_a_version_are_its_past_and_future_but_not_its_siblings() -> None:
    found = graph().around(graph().matching("e1"))
    assert {node.name for node in found.nodes.values()} == {"emoji", "r1", "v1", "e1", "s"}
    assert {node.name for node in graph().around(graph().matching("v3")).nodes.values()} == {"v3"}
    assert {node.name for node in graph().around(graph().matching("v2")).nodes.values()} == {
        "emoji",
        "r1",
        "v1",
        "r2",
        "v2",
        "s",
    }


def test_a_version_without_its_run_keeps_its_data_and_parent() -> None:
    left = [one for one in world() if one["kind"] == "ModelVersion"]
    assert links(lineage_graph(left, [])) == {("data", "v1"), ("data", "v2"), ("v1", "v2")}


def test_names_kinds_and_digests_are_found() -> None:
    for word in ("v1", "modelversion/v1", "ModelVersion/v1", V1, V1[7:30], "ModelVersion:default/v1"):
        assert graph().matching(word) == ["ModelVersion:default/v1"], word
    assert graph().matching("nothing") == []


def test_it_is_drawn() -> None:
    tree = as_tree(graph(), marked=["ModelVersion:default/v1"])
    assert tree.splitlines()[0] == "ModelVersion v3  sha256:333333333333  model=m  waived=test" or "v3" in tree
    assert "* published → ModelVersion v1" in tree
    assert tree.count("(above)") == 2
    assert '"Engine:default/e1" -> "ModelService:default/s" [label="stable"];' in as_dot(graph())
    assert {node["name"] for node in as_json(graph())["nodes"]} >= {"emoji", "r1", "s"}


EDGES = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=30)


@given(edges=EDGES, start=st.integers(0, 12))
def test_around_is_closed_and_has_the_start(edges: list[tuple[int, int]], start: int) -> None:
    ordered = {(min(a, b), max(a, b)) for a, b in edges if a != b}
    nodes = {str(number): Node(id=str(number), kind="k", name=str(number)) for number in range(13)}
    whole = Graph(nodes=nodes, edges=tuple(Edge(source=str(a), target=str(b), role="r") for a, b in sorted(ordered)))
    part = whole.around([str(start)])
    assert str(start) in part.nodes
    assert part.around([str(start)]) == part
    # Every line of the tree is a node or a mention of one; each node is drawn in full exactly once.
    drawn = [line for line in as_tree(part).splitlines() if "(above)" not in line]
    assert len(drawn) == len(part.nodes)


def test_what_is_needed() -> None:
    engine = "sha256:" + "e" * 64
    orphan, mine, attempt = ("sha256:" + digit * 64 for digit in "abc")
    artifacts = [
        artifact(DATA, "datasets/emoji", kind=ArtifactKind.DATASET),
        artifact(V1, "models/v1"),
        artifact(engine, "engines/1", kind=ArtifactKind.ENGINE),
        artifact(orphan, "models/gone", "runs/default/gone/1"),
        artifact(mine, "mine/favourite"),
        artifact(attempt, "runs/default/r1/2"),
        artifact("sha256:" + "f" * 64),
    ]
    assert needed(artifacts, world(), built_from={engine: V1}) == {DATA, V1, engine, mine, attempt}
    assert needed(artifacts, world(), built_from={engine: V1}, keep_tags=["models/*"]) >= {orphan}
    assert needed(artifacts, [], built_from={engine: V1}) == {DATA, mine}


@given(st.lists(st.sampled_from([V1, V2, V3, DATA]), max_size=4))
def test_a_version_always_keeps_its_artifact(digests: list[str]) -> None:
    artifacts = [artifact(digest) for digest in (V1, V2, V3, DATA)]
    objects = [thing("ModelVersion", f"v{n}", {"digest": digest}) for n, digest in enumerate(digests)]
    assert needed(artifacts, objects, built_from={}) == set(digests)
