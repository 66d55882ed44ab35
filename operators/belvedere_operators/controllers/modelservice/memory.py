"""The last look at each service that has no rollout: kept by this process alone, because losing it costs one look.

In the journal it would be a write for each service and interval, for ever. During a rollout it is in the journal, with the
counters and the judge's wealth that belong to it.
"""

from __future__ import annotations

from belvedere_operators.controllers.modelservice.journal import Journal, Looked
from belvedere_operators.runtime import Key

IDLE_LOOKS_PER_SECOND = 20.0
"""How many services without a rollout are looked at in a second, all together."""
WAITING_LOOK_SECONDS = 1.0
WAITING_LOOKS_PER_SECOND = 40.0
"""How many of those are, that wait for the gateway to send them requests: the fewer wait, the sooner each is looked at."""


class Memory:
    """Looks by service."""

    def __init__(self) -> None:
        self._looks: dict[Key, Looked] = {}
        self._waiting: set[Key] = set()

    @property
    def num_waiting(self) -> int:
        """How many services wait for the gateway."""
        return len(self._waiting)

    def recall(self, key: Key, journal: Journal) -> Journal:
        """Return the journal with the last look, if that is not in it."""
        last = self._looks.get(key)
        if last is None or journal.active is not None:
            return journal
        known = journal.looked
        return journal if known is not None and known.time >= last.time else journal.with_(looked=last)

    def keep(self, key: Key, journal: Journal) -> None:
        """Keep the last look, and whether the service waits for the gateway."""
        (self._waiting.add if waits_for_gateway(journal) else self._waiting.discard)(key)
        if journal.looked is not None:
            self._looks[key] = journal.looked

    def forget(self, key: Key) -> None:
        """Drop what is known of a service that is gone."""
        self._looks.pop(key, None)
        self._waiting.discard(key)


def worth_writing(journal: Journal) -> Journal:
    """Return what of a journal must not be lost."""
    return journal if journal.active is not None else journal.with_(looked=None)


def waits_for_gateway(journal: Journal) -> bool:
    """Return whether a service without a rollout has replicas and no requests yet, as far as the last look tells."""
    looked = journal.looked
    if journal.active is not None or looked is None:
        return False
    return journal.served and journal.stable not in looked.effective_weight and not looked.problem


def look_seconds(interval_seconds: float, journal: Journal, *, num_services: int, num_waiting: int) -> float:
    """Return how long after a look the next one is due: as asked during a rollout, seldom enough for all without one.

    While a service waits for the gateway to send it requests, the figures are what it waits for.
    """
    if journal.active is not None:
        return interval_seconds
    if waits_for_gateway(journal):
        return min(interval_seconds, max(WAITING_LOOK_SECONDS, num_waiting / WAITING_LOOKS_PER_SECOND))
    return max(interval_seconds, num_services / IDLE_LOOKS_PER_SECOND)
