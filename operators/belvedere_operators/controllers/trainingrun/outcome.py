"""Where a run stands, as its decision finds it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from belvedere_operators.controllers.trainingrun.state import Trained
from belvedere_operators.runtime import Failure
from belvedere_platform.resources.training_run import GateResult
from belvedere_platform.store import Manifest

Phase = Literal["Pending", "Running", "Suspended", "Evaluating", "Succeeded", "Failed"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Where the run stands: its phase, and why it is Ready or not."""

    phase: Phase
    reason: str
    message: str
    ready: bool = False
    refused: Failure | None = None
    waits_for_capacity: bool = False
    attempt: int | None = None
    trained: Trained | None = None
    gates: tuple[GateResult, ...] = ()
    children: tuple[Manifest, ...] = ()
    surplus: tuple[str, ...] = ()
    tags: tuple[tuple[str, str], ...] = field(default=())
    after_seconds: float | None = None
