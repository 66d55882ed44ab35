"""The embedded store against a model of a few lines, driven by random calls; a watch replays to the same state."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from belvedere_platform.errors import Conflict, NotFound
from belvedere_platform.store import Manifest
from belvedere_platform.store.embedded import EmbeddedStore
from belvedere_platform.store.kinds import DEPLOYMENT

NAMES = st.sampled_from(["a", "b"])
MANAGERS = st.sampled_from(["one", "two", "three"])
FIELDS = st.dictionaries(st.sampled_from(["x", "y", "z"]), st.integers(0, 2), max_size=3)


class Model:
    """One object: who gave which field, last writer wins, and a field without a giver is gone."""

    def __init__(self) -> None:
        self.values: dict[str, dict[str, int]] = {"spec": {}, "status": {}}
        self.given: dict[tuple[str, str], set[str]] = {}
        self.generation = 1

    def apply(self, part: str, manager: str, fields: dict[str, int]) -> None:
        before = dict(self.values[part])
        for (other_part, other), names in self.given.items():
            if other_part == part and other != manager:
                names -= {name for name, value in fields.items() if before.get(name) != value}
        dropped = self.given.get((part, manager), set()) - fields.keys()
        self.given[part, manager] = set(fields)
        self.values[part].update(fields)
        for name in dropped:
            if not any(name in names for (other_part, _), names in self.given.items() if other_part == part):
                del self.values[part][name]
        if part == "spec" and self.values[part] != before:
            self.generation += 1


class StoreMachine(RuleBasedStateMachine):
    """Apply, apply status, delete and reopen at random."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.loop = asyncio.new_event_loop()
        self.store = EmbeddedStore(Path(self.folder.name) / "store.db")
        self.models: dict[str, Model] = {}
        self.versions = [1]

    def teardown(self) -> None:
        self.run(self.check_replay())
        self.run(self.store.close())
        self.loop.close()
        self.folder.cleanup()

    def run(self, call: Any) -> Any:
        return self.loop.run_until_complete(call)

    def manifest(self, name: str, **parts: Any) -> Manifest:
        metadata = {"name": name, "namespace": "default"}
        return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, **parts}

    @rule(name=NAMES, manager=MANAGERS, fields=FIELDS)
    def apply(self, name: str, manager: str, fields: dict[str, int]) -> None:
        created = name not in self.models
        model = self.models.setdefault(name, Model())
        model.apply("spec", manager, fields)
        if created:
            model.generation = 1
        self.applied(self.run(self.store.apply(self.manifest(name, spec=fields), field_manager=manager)), model)

    @rule(name=NAMES, manager=MANAGERS, fields=FIELDS)
    def apply_status(self, name: str, manager: str, fields: dict[str, int]) -> None:
        call = self.store.apply_status(self.manifest(name, status=fields), field_manager=manager)
        if name not in self.models:
            try:
                self.run(call)
            except NotFound:
                return
            raise AssertionError("a status was applied to nothing")
        self.models[name].apply("status", manager, fields)
        self.applied(self.run(call), self.models[name])

    @rule(name=NAMES, manager=MANAGERS, fields=FIELDS)
    def apply_stale(self, name: str, manager: str, fields: dict[str, int]) -> None:
        manifest = self.manifest(name, spec=fields)
        manifest["metadata"]["resourceVersion"] = str(self.versions[-1] + 1)
        try:
            self.run(self.store.apply(manifest, field_manager=manager))
        except Conflict:
            return
        raise AssertionError("a version that is not current was accepted")

    @rule(name=NAMES)
    def delete(self, name: str) -> None:
        try:
            self.run(self.store.delete(DEPLOYMENT, name, "default"))
        except NotFound:
            assert name not in self.models
        else:
            del self.models[name]
            self.versions.append(self.versions[-1] + 1)

    @rule()
    def reopen(self) -> None:
        self.run(self.store.close())
        self.store = EmbeddedStore(Path(self.folder.name) / "store.db")

    def applied(self, manifest: Manifest, model: Model) -> None:
        for part in ("spec", "status"):
            assert (manifest.get(part) or {}) == model.values[part]
        assert manifest["metadata"]["generation"] == model.generation
        version = int(manifest["metadata"]["resourceVersion"])
        assert version <= self.versions[-1] + 1
        self.versions.append(max(version, self.versions[-1]))

    @invariant()
    def lists_what_the_model_has(self) -> None:
        listing = self.run(self.store.list(DEPLOYMENT))
        assert [item["metadata"]["name"] for item in listing.items] == sorted(self.models)
        assert int(listing.resource_version) == self.versions[-1]
        for item in listing.items:
            assert (item.get("spec") or {}) == self.models[item["metadata"]["name"]].values["spec"]

    async def check_replay(self) -> None:
        """Replay the whole log: it ends in what is listed, and every change in it changed something."""
        listing = await self.store.list(DEPLOYMENT)
        state: dict[str, Manifest] = {}
        if listing.resource_version == "1":
            return
        async for event in self.store.watch(DEPLOYMENT, resource_version="1"):
            name = event.object["metadata"]["name"]
            assert (name in state) == (event.type != "ADDED")
            if event.type == "DELETED":
                del state[name]
            else:
                state[name] = event.object
            if event.object["metadata"]["resourceVersion"] == listing.resource_version:
                break
        assert [state[name] for name in sorted(state)] == listing.items


TestStore = StoreMachine.TestCase
TestStore.settings = settings(
    max_examples=40,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
