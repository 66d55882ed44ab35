"""Decide how many replicas a service has, from alerts and from the requests in flight."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What the spec allows, and how patient scaling is."""

    minimum: int
    maximum: int
    target_in_flight: float
    scale_in_delay_seconds: float
    settle_seconds: float = 10.0
    """After a change: how long until its effect shows in what is measured."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """What is seen now. `in_flight` is None when it could not be measured."""

    now: float
    routable: int
    in_flight: float | None
    overload_alert: str | None = None
    rollout_active: bool = False


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How many replicas are wanted, why, and since when fewer would do."""

    replicas: int
    reason: str = ""
    last_change: float | None = None
    below_since: float | None = None


def decide_scale(current: Scale, bounds: Bounds, load: Load) -> Scale:
    """Return the scale wanted. At most one replica is added or removed at a time."""
    bounded = min(max(current.replicas, bounds.minimum), bounds.maximum)
    if bounded != current.replicas:
        return Scale(
            replicas=bounded,
            reason=f"spec.scaling allows {bounds.minimum} to {bounds.maximum}",
            last_change=load.now,
        )
    if load.overload_alert is not None:
        return _scale_out(current, bounds, load)
    return _scale_in(current, bounds, load)


def _scale_out(current: Scale, bounds: Bounds, load: Load) -> Scale:
    if current.replicas >= bounds.maximum:
        return _stay(current, f"{load.overload_alert} is firing; spec.scaling.maxReplicas is {bounds.maximum}")
    if load.routable < current.replicas:
        # What was asked for has not arrived: asking for more would count the same demand twice.
        return _stay(
            current, f"{load.overload_alert} is firing; {current.replicas - load.routable} replicas are pending"
        )
    if not _settled(current, bounds, load.now):
        return _stay(current, f"{load.overload_alert} is firing; the last change has not shown its effect yet")
    return Scale(replicas=current.replicas + 1, reason=f"alert {load.overload_alert} is firing", last_change=load.now)


def _scale_in(current: Scale, bounds: Bounds, load: Load) -> Scale:
    if current.replicas <= bounds.minimum:
        return _stay(current, current.reason)
    if load.rollout_active:
        return _stay(current, "a rollout is in progress: the stable version stays warm")
    if load.in_flight is None or not math.isfinite(load.in_flight):
        return _stay(current, "requests in flight are not known")
    if load.routable < current.replicas:
        return _stay(current, f"{current.replicas - load.routable} replicas are pending")
    each = load.in_flight / (current.replicas - 1)
    if each > bounds.target_in_flight:
        return _stay(current, f"{load.in_flight:.1f} in flight would be {each:.1f} a replica with one fewer")
    since = current.below_since if current.below_since is not None else load.now
    if load.now - since < bounds.scale_in_delay_seconds or not _settled(current, bounds, load.now):
        return Scale(
            replicas=current.replicas, reason=current.reason, last_change=current.last_change, below_since=since
        )
    return Scale(
        replicas=current.replicas - 1,
        reason=f"{load.in_flight:.1f} in flight for {load.now - since:.0f} s; one fewer still carries at most {bounds.target_in_flight:g} each",
        last_change=load.now,
    )


def _settled(current: Scale, bounds: Bounds, now: float) -> bool:
    return current.last_change is None or now - current.last_change >= bounds.settle_seconds


def _stay(current: Scale, reason: str) -> Scale:
    return Scale(replicas=current.replicas, reason=reason, last_change=current.last_change)


def share_of(replicas: int, weight: int) -> int:
    """Return how many of the candidate's replicas a share of the traffic needs: at least one."""
    return max(1, math.ceil(replicas * weight / 100))
