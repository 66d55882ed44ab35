"""Reconcile TrainingRuns: gather, decide, apply, status."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from belvedere_operators.controllers.context import Context
from belvedere_operators.controllers.status import Reporter
from belvedere_operators.controllers.trainingrun.decide import Decision, decide
from belvedere_operators.controllers.trainingrun.progress import ProgressBoard
from belvedere_operators.controllers.trainingrun.state import State, gather
from belvedere_operators.manifests.ownership import MANAGED_BY
from belvedere_operators.manifests.rayjob import RUN_LABEL
from belvedere_operators.runtime import (
    After,
    Controller,
    Key,
    Watched,
    label_keys,
)
from belvedere_platform.errors import NotFound
from belvedere_platform.store import Manifest
from belvedere_platform.store.kinds import MODEL_VERSION, NODE, RAY_JOB, TRAINING_RUN

FIELD_MANAGER = "belvedere-trainingrun"
VERSIONS_INDEX = "versions"


class TrainingRunReconciler:
    """Joins the four steps for one run."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._admission = asyncio.Lock()
        self._board = ProgressBoard(context.http, context.settings.prometheus_url, context.clock)
        self._reporter = Reporter(context.store, context.clock, field_manager=FIELD_MANAGER)

    async def reconcile(self, key: Key) -> After | None:
        """Bring one run a step further."""
        gathered = await gather(self._context, self._board, key)
        if gathered is None:
            return None
        if gathered[1].accelerators is None:
            return await self._act(key, *gathered)
        # Two runs that looked at the same time would both take what is free for one of them.
        async with self._admission:
            gathered = await gather(self._context, self._board, key)
            return None if gathered is None else await self._act(key, *gathered)

    async def _act(self, key: Key, manifest: Manifest, state: State) -> After | None:
        decision = decide(state)
        await self._apply(decision, key.namespace)
        await self._reporter.report(manifest, state.run.status, decision.status, decision.happenings)
        return None if decision.after_seconds is None else After(decision.after_seconds)

    async def _apply(self, decision: Decision, namespace: str) -> None:
        # The tag comes before the ModelVersion: whoever sees the version finds its artifact by name.
        for digest, tag in decision.tags:
            await asyncio.to_thread(self._context.artifacts.tag, digest, tag)
        for child in decision.children:
            await self._context.store.apply(child, field_manager=FIELD_MANAGER)
        for name in decision.surplus:
            with contextlib.suppress(NotFound):
                await self._context.store.delete(RAY_JOB, name, namespace)


def versions_named(run: Manifest) -> tuple[str | None, ...]:
    """Return the versions that a run publishes, may publish, or starts from."""
    spec = run["spec"]
    return spec.get("version"), run["metadata"]["name"], (spec.get("initializeFrom") or {}).get("modelVersion")


def training_run_controller(context: Context) -> Controller:
    """Return the controller of TrainingRuns."""

    runs = context.caches.of(TRAINING_RUN)
    runs.index(VERSIONS_INDEX, versions_named)

    def waiting_for_version(version: Manifest) -> Sequence[Key]:
        return runs.naming(VERSIONS_INDEX, version["metadata"]["namespace"], version["metadata"]["name"])

    # A run that waits looks again by itself: nodes change too often to wake every run each time.
    nodes = (Watched(kind=NODE, keys=lambda node: ()),) if context.settings.count_accelerators else ()
    return Controller(
        name="trainingrun",
        kind=TRAINING_RUN,
        reconcile=TrainingRunReconciler(context).reconcile,
        caches=context.caches,
        clock=context.clock,
        watched=(
            Watched(kind=RAY_JOB, keys=label_keys(RUN_LABEL), labels=MANAGED_BY),
            Watched(kind=MODEL_VERSION, keys=waiting_for_version),
            *nodes,
        ),
        workers=context.settings.workers,
    )
