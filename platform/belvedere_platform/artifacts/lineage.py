"""What came from what: a graph over data, runs, versions, engines and services, walked both ways. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from belvedere_platform.artifacts.layout import ArtifactKind, Descriptor

Manifest = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Node:
    """One thing with a past or a future. `id` is `kind:namespace/name`, or `kind:digest` for an artifact."""

    id: str
    kind: str
    name: str
    namespace: str = ""
    digest: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Edge:
    """`source` went into `target`."""

    source: str
    target: str
    role: str


@dataclass(frozen=True, kw_only=True)
class Graph:
    """Nodes by id, and what went into what."""

    nodes: Mapping[str, Node]
    edges: tuple[Edge, ...]

    def matching(self, name: str) -> list[str]:
        """Return the ids that a user's word may mean: an id, KIND/NAME, a name, or a digest with or without sha256."""
        kind, slash, rest = name.lower().partition("/")
        return sorted(
            node.id
            for node in self.nodes.values()
            if name in (node.id, node.name)
            or (slash and node.kind.lower() == kind and node.name == rest)
            or (
                len(name) >= 12
                and node.digest is not None
                and node.digest.removeprefix("sha256:").startswith(name.removeprefix("sha256:"))
            )
        )

    def around(self, start: Iterable[str]) -> Graph:
        """Return all that the start came from and all that came from it, without the siblings in between."""
        start = set(start)
        kept = _closure(start, {edge: (edge.target, edge.source) for edge in self.edges}) | _closure(
            start, {edge: (edge.source, edge.target) for edge in self.edges}
        )
        return Graph(
            nodes={id_: node for id_, node in self.nodes.items() if id_ in kept},
            edges=tuple(edge for edge in self.edges if edge.source in kept and edge.target in kept),
        )


def _closure(start: set[str], steps: Mapping[Edge, tuple[str, str]]) -> set[str]:
    reached, pending = set(start), list(start)
    following: dict[str, list[str]] = {}
    for here, there in steps.values():
        following.setdefault(here, []).append(there)
    while pending:
        for there in following.get(pending.pop(), ()):
            if there not in reached:
                reached.add(there)
                pending.append(there)
    return reached


def lineage_graph(objects: Iterable[Manifest], artifacts: Iterable[Descriptor]) -> Graph:
    """Return the graph of everything the objects say they came from; artifacts give data sets their names."""
    build = _Builder(artifacts)
    by_kind: dict[str, list[Manifest]] = {}
    for manifest in objects:
        by_kind.setdefault(manifest["kind"], []).append(manifest)
    for kind in ("TrainingRun", "ModelVersion", "Engine", "ModelService"):
        for manifest in by_kind.get(kind, ()):
            build.add(manifest)
    return build.graph()


class _Builder:
    def __init__(self, artifacts: Iterable[Descriptor]) -> None:
        self._datasets = {one.digest: one for one in artifacts if one.kind is ArtifactKind.DATASET}
        self._by_tag = {tag: one.digest for one in self._datasets.values() for tag in one.tags}
        self._nodes: dict[str, Node] = {}
        self._edges: dict[Edge, None] = {}

    def graph(self) -> Graph:
        edges = [edge for edge in self._edges if edge.source in self._nodes and edge.target in self._nodes]
        ordered = dict(sorted(self._nodes.items()))
        return Graph(nodes=ordered, edges=tuple(sorted(edges, key=lambda edge: (edge.source, edge.target, edge.role))))

    def add(self, manifest: Manifest) -> None:
        metadata, spec, status = manifest["metadata"], manifest["spec"], manifest.get("status") or {}
        kind, namespace, name = manifest["kind"], metadata.get("namespace", ""), metadata["name"]
        id_ = _id(kind, namespace, name)
        digest = spec.get("digest") or status.get("digest")
        self._nodes[id_] = Node(
            id=id_, kind=kind, name=name, namespace=namespace, digest=digest, facts=_facts(kind, spec, status)
        )
        wire = {
            "TrainingRun": self._wire_run,
            "ModelVersion": self._wire_version,
            "Engine": self._wire_engine,
            "ModelService": self._wire_service,
        }[kind]
        wire(id_, namespace, spec, status)

    def _edge(self, source: str, target: str, role: str) -> None:
        self._edges[Edge(source=source, target=target, role=role)] = None

    def _dataset(self, digest: str) -> str:
        id_ = f"dataset:{digest}"
        known = self._datasets.get(digest)
        name = known.tags[0].removeprefix("datasets/") if known is not None and known.tags else digest[7:19]
        self._nodes.setdefault(id_, Node(id=id_, kind="dataset", name=name, digest=digest))
        return id_

    def _wire_run(self, id_: str, namespace: str, spec: Manifest, status: Manifest) -> None:
        reference = spec["data"]["dataset"]
        digest = reference if reference.startswith("sha256:") else self._by_tag.get(f"datasets/{reference}")
        # A finished run's data is what its version's lineage says; the name may have moved on since.
        if digest is not None and not status.get("modelVersion"):
            self._edge(self._dataset(digest), id_, "data")
        if parent := spec.get("initializeFrom", {}).get("modelVersion"):
            self._edge(_id("ModelVersion", namespace, parent), id_, "initializes")

    def _wire_version(self, id_: str, namespace: str, spec: Manifest, status: Manifest) -> None:
        lineage = spec.get("lineage", {})
        run = _id("TrainingRun", namespace, lineage["trainingRun"]) if lineage.get("trainingRun") else None
        through = run if run in self._nodes else None
        if through is not None:
            self._edge(through, id_, "published")
        if lineage.get("dataDigest"):
            self._edge(self._dataset(lineage["dataDigest"]), through or id_, "data")
        if lineage.get("parent") and through is None:
            self._edge(_id("ModelVersion", namespace, lineage["parent"]), id_, "parent")

    def _wire_engine(self, id_: str, namespace: str, spec: Manifest, status: Manifest) -> None:
        self._edge(_id("ModelVersion", namespace, spec["modelVersion"]), id_, "compiled")

    def _wire_service(self, id_: str, namespace: str, spec: Manifest, status: Manifest) -> None:
        served = {role: status.get(role) or {} for role in ("stable", "candidate")}
        if not any(side.get("version") for side in served.values()):
            served = {"asked": {"version": spec["version"]}}
        for role, side in served.items():
            if not side.get("version"):
                continue
            engine = _id("Engine", namespace, side["engine"]) if side.get("engine") else None
            if engine in self._nodes:
                assert engine is not None
                self._edge(engine, id_, role)
            else:
                self._edge(_id("ModelVersion", namespace, side["version"]), id_, role)


def _id(kind: str, namespace: str, name: str) -> str:
    return f"{kind}:{namespace}/{name}"


def _facts(kind: str, spec: Manifest, status: Manifest) -> dict[str, Any]:
    ready = next((one["status"] for one in status.get("conditions", []) if one["type"] == "Ready"), None)
    facts: dict[str, Any] = {"ready": ready}
    if kind == "TrainingRun":
        facts |= {"phase": status.get("phase"), "pairs": spec["optimization"]["pairs"]}
    elif kind == "ModelVersion":
        facts |= {"model": spec["model"], "waived": spec["evaluation"].get("waived"), "metrics": spec.get("metrics")}
    elif kind == "Engine":
        target = spec.get("target", {})
        facts |= {"runtime": target.get("runtime"), "precision": target.get("precision")}
    else:
        facts |= {"rollout": (status.get("rollout") or {}).get("phase")}
    return {name: value for name, value in facts.items() if value not in (None, {})}


def as_json(graph: Graph) -> dict[str, Any]:
    """Return the graph as plain data."""
    return {
        "nodes": [
            {
                key: value
                for key, value in (
                    ("id", node.id), ("kind", node.kind), ("name", node.name), ("namespace", node.namespace),
                    ("digest", node.digest), ("facts", dict(node.facts)),
                )
                if value
            }
            for node in graph.nodes.values()
        ],
        "edges": [{"from": edge.source, "to": edge.target, "role": edge.role} for edge in graph.edges],
    }  # fmt: skip


def as_dot(graph: Graph) -> str:
    """Return the graph in Graphviz' language."""
    lines = ["digraph lineage {", "  rankdir=LR;", "  node [shape=box];"]
    for node in graph.nodes.values():
        label = f"{node.kind}\n{node.name}" + (f"\n{node.digest[7:19]}" if node.digest else "")
        lines.append(f"  {json.dumps(node.id)} [label={json.dumps(label, ensure_ascii=False)}];")
    lines += [
        f"  {json.dumps(edge.source)} -> {json.dumps(edge.target)} [label={json.dumps(edge.role)}];"
        for edge in graph.edges
    ]
    return "\n".join([*lines, "}"])


def as_tree(graph: Graph, *, marked: Iterable[str] = ()) -> str:
    """Return the graph as an indented tree from the oldest to the newest; what has several origins is drawn once."""
    marks, drawn = set(marked), set[str]()
    children: dict[str, list[Edge]] = {}
    for edge in graph.edges:
        children.setdefault(edge.source, []).append(edge)
    roots = [id_ for id_ in graph.nodes if id_ not in {edge.target for edge in graph.edges}]
    lines: list[str] = []

    def draw(id_: str, lead: str, branch: str, role: str) -> None:
        node, again = graph.nodes[id_], id_ in drawn
        drawn.add(id_)
        text = _line(node) if not again else f"{node.kind} {node.name} (above)"
        lines.append(f"{lead}{branch}{'* ' if id_ in marks else ''}{f'{role} → ' if role else ''}{text}")
        if again:
            return
        deeper = lead + ("" if not branch else "   " if branch.startswith("└") else "│  ")
        below = children.get(id_, [])
        for position, edge in enumerate(below):
            draw(edge.target, deeper, "└─ " if position == len(below) - 1 else "├─ ", edge.role)

    for root in roots:
        draw(root, "", "", "")
    return "\n".join(lines)


def _line(node: Node) -> str:
    facts = [f"{name}={value}" for name, value in node.facts.items() if isinstance(value, (str, int, float))]
    parts: Sequence[str] = [f"{node.kind} {node.name}", *([node.digest[:19]] if node.digest else []), *facts]
    return "  ".join(parts)
