"""Write what was decided: the journal first, then the route, then what follows from them, and what is in the way last."""

from __future__ import annotations

import contextlib
import logging
from typing import Literal

from belvedere_operators.controllers.modelservice.children import Children
from belvedere_operators.controllers.modelservice.journal import Journal, Record, journal_manifest
from belvedere_operators.controllers.modelservice.memory import worth_writing
from belvedere_operators.controllers.modelservice.state import State
from belvedere_operators.controllers.modelservice.status import decision_record
from belvedere_operators.controllers.modelservice.workers import resize
from belvedere_operators.runtime import EventRecorder
from belvedere_platform.errors import NotFound, NotInstalled
from belvedere_platform.resources.model_service_status import ModelServiceStatus
from belvedere_platform.store import Manifest, ObjectStore
from belvedere_platform.store.admission import kind_of
from belvedere_platform.store.kinds import DEPLOYMENT, SERVICE

log = logging.getLogger(__name__)

FIELD_MANAGER = "belvedere-modelservice"
WARNINGS = ("Abort", "Pause")


async def apply_journal(store: ObjectStore, state: State, journal: Journal) -> None:
    """Record the decision before anything acts on it. Raises Conflict when someone else wrote meanwhile."""
    kept = worth_writing(journal)
    if kept == worth_writing(state.journal) and state.journal_version is not None:
        return
    await store.apply(journal_manifest(state.manifest, kept, state.journal_version), field_manager=FIELD_MANAGER)


async def apply_children(store: ObjectStore, state: State, wanted: Children) -> None:
    """Write the children; the route goes first, so that a bad candidate loses its traffic before anything else happens."""
    if wanted.route is not None:
        await store.apply(wanted.route, field_manager=FIELD_MANAGER)
    for manifest in (*wanted.engines, *wanted.servers):
        await store.apply(manifest, field_manager=FIELD_MANAGER)
    found = {server["metadata"]["name"]: server for server in state.servers.values()}
    for manifest in wanted.servers:
        await resize(store, manifest, found.get(manifest["metadata"]["name"]), field_manager=FIELD_MANAGER)
    for manifest in wanted.guards:
        await store.apply(manifest, field_manager=FIELD_MANAGER)
    if wanted.rule is not None:
        # Without the Prometheus operator there are no alerts; the judge needs none.
        with contextlib.suppress(NotInstalled):
            await store.apply(wanted.rule, field_manager=FIELD_MANAGER)
    for manifest in wanted.surplus:
        await _delete(store, manifest)


async def tell(events: EventRecorder, state: State, journal: Journal, status: ModelServiceStatus) -> None:
    """Write an Event and a log line for every decision that status does not show yet."""
    shown = {(one["time"], one["decision"]) for one in (state.manifest.get("status") or {}).get("decisions", ())}
    for record in journal.decisions[-len(status.decisions) :] if status.decisions else ():
        written = decision_record(record)
        if (written.time, written.decision) not in shown:
            await _tell_one(events, state, record)


async def _tell_one(events: EventRecorder, state: State, record: Record) -> None:
    kind: Literal["Normal", "Warning"] = "Warning" if record.decision in WARNINGS else "Normal"
    moved = f" {record.from_weight} → {record.to_weight} %" if record.from_weight != record.to_weight else ""
    about = f"{record.candidate}: " if record.candidate else ""
    message = f"{about}{record.decision}{moved}, {record.reason} [{record.signal}]"
    log.info("decided service=%s/%s %s", state.namespace, state.name, message)
    await events.record(state.manifest, kind, record.decision, message)


async def _delete(store: ObjectStore, manifest: Manifest) -> None:
    metadata = manifest["metadata"]
    if "deletionTimestamp" in metadata:
        return
    kinds = (DEPLOYMENT, SERVICE) if manifest["kind"] == DEPLOYMENT.kind else (kind_of(manifest),)
    for kind in kinds:
        try:
            await store.delete(kind, metadata["name"], metadata["namespace"])
        except NotFound:
            log.debug("%s %s is gone already", kind.kind, metadata["name"])
