"""Write the judge's state as plain JSON and read it back without losing a bit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from belvedere_operators.delivery.dispersion import Dispersion
from belvedere_operators.delivery.judge import Bets, JudgePlan, JudgeState, Limit, Totals


def to_json(state: JudgeState) -> dict[str, Any]:
    """Return the state as JSON values. Floats keep every bit: JSON numbers are written with their shortest exact form."""
    return {
        "plan": asdict(state.plan),
        "totals": asdict(state.totals),
        "errors": _bets(state.errors) if state.errors else None,
        "edges": {repr(edge): _bets(bets) for edge, bets in state.edges.items()},
        "latency": _bets(state.latency) if state.latency else None,
        "slow_edge": state.slow_edge,
        "shadow": {model: _bets(bets) for model, bets in state.shadow.items()},
    }


def from_json(data: Mapping[str, Any]) -> JudgeState:
    """Return the state that `to_json` wrote. Raises KeyError, TypeError or ValueError when it is something else."""
    return JudgeState(
        plan=_plan(data["plan"]),
        totals=Totals(**data["totals"]),
        errors=_read_bets(data["errors"]) if data["errors"] else None,
        edges={float(edge): _read_bets(bets) for edge, bets in data["edges"].items()},
        latency=_read_bets(data["latency"]) if data["latency"] else None,
        slow_edge=data["slow_edge"],
        shadow={model: _read_bets(bets) for model, bets in data["shadow"].items()},
    )


def _bets(bets: Bets) -> dict[str, Any]:
    return {
        "harm": list(bets.harm),
        "ratio": list(bets.ratio),
        "budget": list(bets.budget),
        "dispersion": asdict(bets.dispersion),
    }


def _read_bets(data: Mapping[str, Any]) -> Bets:
    return Bets(
        harm=tuple(data["harm"]),
        ratio=tuple(data["ratio"]),
        budget=tuple(data["budget"]),
        dispersion=Dispersion(**data["dispersion"]),
    )


def _plan(data: Mapping[str, Any]) -> JudgePlan:
    limits = {name: Limit(**data[name]) if data[name] else None for name in ("errors", "latency")}
    return JudgePlan(**{**data, **limits})
