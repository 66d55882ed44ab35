"""Say what the judge knows: the e-values against their thresholds, as numbers and as one readable line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from belvedere_operators.delivery.judge import JudgeState, Totals, harm_of, safe_of

BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What is known after the last look."""

    harm: Mapping[str, float] = field(default_factory=dict)
    safe: Mapping[str, float] = field(default_factory=dict)
    abort_at: float = 20.0
    promote_at: float = 20.0
    totals: Totals = field(default_factory=Totals)

    @property
    def harmful(self) -> tuple[str, ...]:
        """Gates at which harm is proven, the surest first."""
        crossed = [gate for gate, value in self.harm.items() if value >= self.abort_at]
        return tuple(sorted(crossed, key=lambda gate: -self.harm[gate]))

    @property
    def unproven(self) -> tuple[str, ...]:
        """Gates that are not proven yet."""
        return tuple(gate for gate, value in self.safe.items() if value < self.promote_at)

    @property
    def line(self) -> str:
        """The whole evidence in one line."""
        parts = [
            f"{gate} harm {_meter(self.harm[gate], self.abort_at)} safe {_meter(self.safe[gate], self.promote_at)}"
            for gate in self.harm
        ]
        return " · ".join(parts) or "no gate is set"


def evidence_of(state: JudgeState) -> Evidence:
    """Return what the judge knows now."""
    return Evidence(
        harm=harm_of(state),
        safe=safe_of(state),
        abort_at=state.plan.abort_at,
        promote_at=state.plan.promote_at,
        totals=state.totals,
    )


def _meter(value: float, threshold: float) -> str:
    filled = min(1.0, max(0.0, value / threshold))
    return f"{BARS[round(filled * (len(BARS) - 1))]} {_short(value)}/{_short(threshold)}"


def _short(value: float) -> str:
    if value >= 9999.5:
        return f"{value:.0e}".replace("e+0", "e").replace("e+", "e")
    if value >= 9.95 or value == round(value):
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 0.05 else "0.0"
