"""Reconcile ModelVersions: read the artifact once and whole, then watch that it stays."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import datetime

from belvedere_operators.controllers.context import Context
from belvedere_operators.controllers.reading import find_standing
from belvedere_operators.controllers.status import Happening, Reporter
from belvedere_operators.runtime import After, Controller, Failure, Key, is_true, set_from_failure
from belvedere_platform.artifacts import ArtifactNotFound, ArtifactStore, CorruptBlob, Descriptor
from belvedere_platform.resources.model_version import ModelVersion, ModelVersionStatus
from belvedere_platform.store import Manifest
from belvedere_platform.store.kinds import MODEL_VERSION

FIELD_MANAGER = "belvedere-modelversion"
MISSING_AGAIN_SECONDS = 10.0
PRESENT_AGAIN_SECONDS = 600.0


@dataclass(frozen=True, kw_only=True)
class State:
    """A version, and its artifact as the store has it."""

    version: ModelVersion
    now: datetime
    artifact: Descriptor | None = None
    corruption: str | None = None


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The status, and when to look again."""

    status: ModelVersionStatus
    after_seconds: float


def artifact_is_there(state: State) -> Failure | None:
    """Ask for the artifact."""
    if state.artifact is not None or state.corruption is not None:
        return None
    return Failure(
        reason="ArtifactNotFound",
        message=f"spec.digest is {state.version.spec.digest}, and the artifact store has no such artifact",
    )


def artifact_is_whole(state: State) -> Failure | None:
    """Ask for bytes that hash to their names."""
    return None if state.corruption is None else Failure(reason="CorruptArtifact", message=state.corruption)


def artifact_is_a_model(state: State) -> Failure | None:
    """Ask for a model rather than a data set or an engine."""
    if state.artifact is None or state.artifact.kind == "model":
        return None
    return Failure(
        reason="ArtifactNotFound",
        message=f"spec.digest {state.version.spec.digest} is the artifact of a {state.artifact.kind.value}, not of a model",
    )


READY = (artifact_is_there, artifact_is_whole, artifact_is_a_model)


def decide(state: State) -> Decision:
    """Return the status that the artifact calls for."""
    before = state.version.status or ModelVersionStatus()
    generation = state.version.metadata.get("generation")
    failure = next((found for check in READY if (found := check(state)) is not None), None)
    status = ModelVersionStatus(
        observed_generation=generation,
        conditions=set_from_failure(
            before.conditions,
            failure,
            type_="Ready",
            reason="Verified",
            message="every file has the digest it should have",
            generation=generation,
            now=state.now,
        ),
        size_bytes=state.artifact.size_bytes if state.artifact is not None else None,
    )
    return Decision(status=status, after_seconds=PRESENT_AGAIN_SECONDS if failure is None else MISSING_AGAIN_SECONDS)


async def gather(context: Context, key: Key) -> tuple[Manifest, State] | None:
    """Read the version and its artifact; None when the version is gone."""
    manifest = await find_standing(context.store, MODEL_VERSION, key)
    if manifest is None:
        return None
    version = ModelVersion.model_validate(manifest)
    verified = version.status is not None and is_true(version.status.conditions, "Ready")
    artifact, corruption = await asyncio.to_thread(_read, context.artifacts, version.spec.digest, verified)
    return manifest, State(version=version, now=context.clock(), artifact=artifact, corruption=corruption)


def _read(artifacts: ArtifactStore, digest: str, verified: bool) -> tuple[Descriptor | None, str | None]:
    try:
        # Every byte is read once; after that its presence is enough, since each reader checks what it reads.
        return (artifacts.resolve(digest) if verified else artifacts.verify(digest)), None
    except ArtifactNotFound:
        return None, None
    except CorruptBlob as error:
        return None, str(error)


class ModelVersionReconciler:
    """Joins the four steps for one version."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._reporter = Reporter(context.store, context.clock, field_manager=FIELD_MANAGER)

    async def reconcile(self, key: Key) -> After | None:
        """Bring the status of one version up to date."""
        gathered = await gather(self._context, key)
        if gathered is None:
            return None
        manifest, state = gathered
        decision = decide(state)
        ready = decision.status.conditions[-1]
        happening = Happening(
            type="Normal" if ready.status == "True" else "Warning", reason=ready.reason, message=ready.message
        )
        await self._reporter.report(manifest, state.version.status, decision.status, (happening,))
        return After(decision.after_seconds)


def model_version_controller(context: Context) -> Controller:
    """Return the controller of ModelVersions."""
    return Controller(
        name="modelversion",
        kind=MODEL_VERSION,
        reconcile=ModelVersionReconciler(context).reconcile,
        caches=context.caches,
        clock=context.clock,
        workers=context.settings.workers,
    )
