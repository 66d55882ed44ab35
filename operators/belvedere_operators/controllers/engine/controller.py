"""Reconcile Engines: gather, decide, apply, status."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from belvedere_operators.controllers.context import Context
from belvedere_operators.controllers.engine.decide import BuildJob, Built, State, decide, parse_built, stands
from belvedere_operators.controllers.reading import condition_is_true, find, find_standing
from belvedere_operators.controllers.status import Happening, Reporter
from belvedere_operators.manifests.enginejob import engine_job_name, engine_tag
from belvedere_operators.manifests.ownership import MANAGED_BY
from belvedere_operators.runtime import After, Controller, Key, Watched, find_condition, owner_keys
from belvedere_platform.artifacts import ArtifactNotFound, ArtifactStore, CorruptBlob
from belvedere_platform.resources.engine import Engine, EngineStatus
from belvedere_platform.store import Manifest
from belvedere_platform.store.kinds import ENGINE, JOB, MODEL_VERSION

FIELD_MANAGER = "belvedere-engine"
VERSION_INDEX = "spec.modelVersion"


async def gather(context: Context, key: Key) -> tuple[Manifest, State] | None:
    """Read everything about an engine; None when it is gone."""
    manifest = await find_standing(context.store, ENGINE, key)
    if manifest is None:
        return None
    engine = Engine.model_validate(manifest)
    version = await find(context.store, MODEL_VERSION, Key(key.namespace, engine.spec.model_version))
    model_digest = version["spec"]["digest"] if version is not None else None
    tag, built, unreadable, earlier = None, None, None, None
    if model_digest is not None:
        tag = engine_tag(engine.spec, model_digest=model_digest, toolchain_digest=context.settings.toolchain_digest)
        built, unreadable = await asyncio.to_thread(_built, context.artifacts, tag)
        if built is None and unreadable is None and stands(engine):
            assert engine.status is not None
            assert engine.status.digest is not None
            earlier, _ = await asyncio.to_thread(_built, context.artifacts, engine.status.digest)
    return manifest, State(
        engine=engine,
        now=context.clock(),
        pods=context.settings.pods,
        toolchain=context.settings.toolchain,
        tag=tag,
        model_digest=model_digest,
        version_ready=version is not None and condition_is_true(version, "Ready"),
        job=_job(await find(context.store, JOB, Key(key.namespace, engine_job_name(key.name, engine.spec.parity)))),
        built=built,
        unreadable=unreadable,
        earlier=earlier if earlier is not None and earlier.model_digest == model_digest else None,
    )


def _built(artifacts: ArtifactStore, tag: str) -> tuple[Built | None, str | None]:
    try:
        descriptor = artifacts.resolve(tag)
        return parse_built(descriptor.digest, descriptor.size_bytes, artifacts.config(descriptor.digest)), None
    except ArtifactNotFound:
        return None, None
    except (CorruptBlob, ValueError) as error:
        return None, str(error)


def _job(manifest: Manifest | None) -> BuildJob | None:
    if manifest is None:
        return None
    status = manifest.get("status", {})
    conditions = {one["type"]: one for one in status.get("conditions", []) if one["status"] == "True"}
    failed = conditions.get("Failed")
    return BuildJob(
        name=manifest["metadata"]["name"],
        succeeded="Complete" in conditions or status.get("succeeded", 0) > 0,
        failed=failed is not None,
        message=(failed or {}).get("message", ""),
    )


def happenings(before: EngineStatus | None, status: EngineStatus) -> list[Happening]:
    """Return what is new about an engine's readiness."""
    ready = find_condition(status.conditions, "Ready")
    was = find_condition(before.conditions, "Ready") if before is not None else None
    if ready is None or (was is not None and was.reason == ready.reason):
        return []
    refused = ready.reason in ("ParityFailed", "LatencyBudgetExceeded", "BuildFailed")
    return [Happening(type="Warning" if refused else "Normal", reason=ready.reason, message=ready.message)]


class EngineReconciler:
    """Joins the four steps for one engine."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._reporter = Reporter(context.store, context.clock, field_manager=FIELD_MANAGER)

    async def reconcile(self, key: Key) -> After | None:
        """Bring one engine a step further."""
        gathered = await gather(self._context, key)
        if gathered is None:
            return None
        manifest, state = gathered
        decision = decide(state)
        for child in decision.children:
            await self._context.store.apply(child, field_manager=FIELD_MANAGER)
        before = state.engine.status
        await self._reporter.report(manifest, before, decision.status, happenings(before, decision.status))
        return None if decision.after_seconds is None else After(decision.after_seconds)


def engine_controller(context: Context) -> Controller:
    """Return the controller of Engines."""

    engines = context.caches.of(ENGINE)
    engines.index(VERSION_INDEX, lambda engine: (engine["spec"]["modelVersion"],))

    def engines_of(version: Manifest) -> Sequence[Key]:
        return engines.naming(VERSION_INDEX, version["metadata"]["namespace"], version["metadata"]["name"])

    return Controller(
        name="engine",
        kind=ENGINE,
        reconcile=EngineReconciler(context).reconcile,
        caches=context.caches,
        clock=context.clock,
        watched=(
            Watched(kind=JOB, keys=owner_keys(ENGINE), labels=MANAGED_BY),
            Watched(kind=MODEL_VERSION, keys=engines_of),
        ),
    )
