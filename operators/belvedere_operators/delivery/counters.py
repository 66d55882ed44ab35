"""Turn raw counter samples of two looks into increments that are never negative."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

SeriesKey = str
"""One series: `name{label="value",…}`, labels sorted, as `series_key` writes it."""

FORGET_AFTER_LOOKS = 240


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One series of a counter at one moment."""

    name: str
    labels: Mapping[str, str]
    value: float

    @property
    def key(self) -> SeriesKey:
        """The series that the sample belongs to."""
        return series_key(self.name, self.labels)


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """The last known value of every series, and for how many looks a series has been missing.

    A vanished series is remembered for a while: a scrape that failed once must not make its whole
    history look like new requests when it comes back.
    """

    values: Mapping[SeriesKey, float] = field(default_factory=dict)
    missing: Mapping[SeriesKey, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Increments:
    """What was counted between two looks."""

    samples: tuple[Sample, ...]
    baseline: Baseline


class UnusableSamples(ValueError):
    """The samples contradict themselves; the look must not be used, and says why."""


def series_key(name: str, labels: Mapping[str, str]) -> SeriesKey:
    """Return the name of a series, the same for the same labels in any order."""
    inner = ",".join(f'{label}="{labels[label]}"' for label in sorted(labels))
    return f"{name}{{{inner}}}"


def increments(before: Baseline | None, after: Iterable[Sample]) -> Increments:
    """Return what was counted since `before`. Without a baseline nothing is known yet, so every increment is zero.

    A value below its baseline means that the process restarted and counts from zero. A series that was never
    seen started at zero after the last look. Raises UnusableSamples on a value that is no count, or a series given twice.
    """
    counted: list[Sample] = []
    values: dict[SeriesKey, float] = {}
    for sample in after:
        key = sample.key
        if not math.isfinite(sample.value) or sample.value < 0:
            raise UnusableSamples(f"{key} is {sample.value}; a counter must be a finite number of at least 0")
        if key in values:
            raise UnusableSamples(f"{key} was reported twice in one look")
        values[key] = sample.value
        counted.append(Sample(name=sample.name, labels=sample.labels, value=_step(before, key, sample.value)))
    return Increments(samples=tuple(counted), baseline=_remember(before, values))


def _step(before: Baseline | None, key: SeriesKey, value: float) -> float:
    if before is None:
        return 0.0
    last = before.values.get(key, 0.0)
    return value if value < last else value - last


def _remember(before: Baseline | None, values: dict[SeriesKey, float]) -> Baseline:
    kept = dict(values)
    missing: dict[SeriesKey, int] = {}
    for key, value in before.values.items() if before else ():
        if key in values:
            continue
        looks = before.missing.get(key, 0) + 1 if before else 1
        if looks <= FORGET_AFTER_LOOKS:
            kept[key], missing[key] = value, looks
    return Baseline(values=kept, missing=missing)
