"""How much more the stable version's events vary from look to look than independent requests would.

A bad pod or a stalled disk makes events come in clumps, and a judge that believes in independent requests takes a clump
on one side for a difference between the versions. The stable version shows how large clumps are: its squared
coefficient of variation, beyond Poisson, is estimated from looks in the past only, and log wealth is divided by it.
"""

from __future__ import annotations

from dataclasses import dataclass

PRIOR_VARIATION = 0.5
PRIOR_LOOKS = 4.0
"""What is believed before the stable version has shown it, and for how many looks' worth that counts."""

UNKNOWN_TEMPER = 4.0
"""Used while the stable version has no history at all."""


@dataclass(frozen=True, kw_only=True)
class Dispersion:
    """Sums over the stable version's past looks."""

    looks: int = 0
    trials: int = 0
    events: int = 0
    excess: float = 0.0
    squared_means: float = 0.0

    @property
    def rate(self) -> float:
        """Events a trial, over the past."""
        return self.events / self.trials if self.trials else 0.0

    @property
    def variation(self) -> float:
        """Squared coefficient of variation of the event rate between looks, beyond chance."""
        if self.squared_means <= 0:
            return PRIOR_VARIATION
        prior = PRIOR_LOOKS * self.squared_means / self.looks
        return max(0.0, self.excess + prior * PRIOR_VARIATION) / (self.squared_means + prior)

    def look(self, trials: int, events: int) -> Dispersion:
        """Return the sums with one more look of the stable version."""
        expected = self.rate * trials
        # The rate itself is uncertain by its own counting error; without this term early looks seem too varied.
        chance = expected * (1 + trials / self.trials) if self.trials else 0.0
        surprise = (events - expected) ** 2 - chance if self.trials else 0.0
        return Dispersion(
            looks=self.looks + 1,
            trials=self.trials + trials,
            events=self.events + events,
            excess=self.excess + surprise,
            squared_means=self.squared_means + expected**2,
        )

    def temper_ratio(self, candidate: int, stable: int) -> float:
        """Return by how much shocks of either side inflate the variance of the compared counts."""
        if not self.trials:
            return UNKNOWN_TEMPER
        if not candidate or not stable:
            return 1.0
        return 1.0 + 2.0 * self.variation * self.rate * candidate * stable / (candidate + stable)

    def temper_share(self, trials: int) -> float:
        """Return by how much shocks inflate the variance of one side's count."""
        return 1.0 + self.variation * self.rate * trials
