"""The alerts that a service is told of: which fire, since when, and what an older message may no longer change.

Alertmanager delivers at least once and in any order. A message about an alert is identified by its fingerprint and the time
it began: an older beginning never overrides a newer one, and a firing that was resolved stays resolved.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from belvedere_operators.delivery.rollout import Alert, Authority
from belvedere_operators.runtime import parse_timestamp
from belvedere_platform.errors import CorruptData, InvalidInput
from belvedere_platform.resources.base import Part
from belvedere_platform.store import Manifest

ALERTS_KEY = "alerts.json"
LARGEST_BOOK = 64
REFRESH_SECONDS = 15.0
"""A repeated message is written down again only after this long: the book is a stored object."""

ACTIONS: tuple[Authority, ...] = ("scaleOut", "pause", "abort", "hold")
HEARTBEAT = "heartbeat"


def alerts_name(service: str) -> str:
    """Return the name of the ConfigMap with the alerts of a service."""
    return f"{service}-alerts"


class Told(Part):
    """One alert as last told."""

    fingerprint: str
    name: str
    action: str
    version: str | None = None
    summary: str = ""
    status: Literal["firing", "resolved"]
    began: float
    heard: float


class Book(Part):
    """All alerts of one service, the latest heard last."""

    alerts: tuple[Told, ...] = ()

    def firing(self, *, now: float, stale_seconds: float) -> tuple[Told, ...]:
        """Return what fires. One that has not been repeated for long is no longer believed."""
        return tuple(one for one in self.alerts if one.status == "firing" and now - one.heard < stale_seconds)

    def heartbeat(self) -> float | None:
        """Return when the watchdog was last heard, or None."""
        return max((one.heard for one in self.alerts if one.action == HEARTBEAT), default=None)

    def hear(self, told: Iterable[Told]) -> Book:
        """Return the book after some messages."""
        known = {one.fingerprint: one for one in self.alerts}
        for one in told:
            before = known.get(one.fingerprint)
            if before is None or _is_news(before, one):
                known.pop(one.fingerprint, None)
                known[one.fingerprint] = one
        return Book(alerts=_bounded(known))


def _is_news(before: Told, one: Told) -> bool:
    if one.began < before.began:
        return False
    if one.began == before.began and before.status == "resolved":
        return False
    return one.status != before.status or one.began != before.began or one.heard - before.heard >= REFRESH_SECONDS


def _bounded(known: Mapping[str, Told]) -> tuple[Told, ...]:
    """Keep the firing ones before the resolved ones, and of each the latest."""
    alerts = list(known.values())
    while len(alerts) > LARGEST_BOOK:
        resolved = next((one for one in alerts if one.status == "resolved"), alerts[0])
        alerts.remove(resolved)
    return tuple(alerts)


def read_book(manifest: Manifest | None) -> Book:
    """Return the book in a ConfigMap, or an empty one. Raises CorruptData when it cannot be read."""
    if manifest is None:
        return Book()
    try:
        return Book.model_validate_json(manifest["data"][ALERTS_KEY])
    except (KeyError, ValueError) as error:
        name = manifest["metadata"]["name"]
        raise CorruptData(
            f"ConfigMap {name}: {ALERTS_KEY} cannot be read ({error}); delete it, alerts are sent again"
        ) from error


def told_of(alert: Mapping[str, Any], *, heard: float) -> Told:
    """Return one alert of an Alertmanager message. Raises InvalidInput, naming the field."""
    labels, annotations = _strings(alert, "labels"), _strings(alert, "annotations")
    for label in ("alertname", "belvedere_action"):
        if not labels.get(label):
            raise InvalidInput(f"alerts[].labels.{label} is missing; it must be set in the rule")
    if labels["belvedere_action"] not in (*ACTIONS, HEARTBEAT):
        raise InvalidInput(
            f"alerts[].labels.belvedere_action is {labels['belvedere_action']!r}; use {', '.join(ACTIONS)} or {HEARTBEAT}"
        )
    status = alert.get("status")
    if status not in ("firing", "resolved"):
        raise InvalidInput(f"alerts[].status is {status!r}; it must be firing or resolved")
    fingerprint = alert.get("fingerprint")
    if not isinstance(fingerprint, str) or not 0 < len(fingerprint) <= 128:
        raise InvalidInput(f"alerts[].fingerprint is {fingerprint!r}; it must be a short string")
    try:
        began = parse_timestamp(str(alert.get("startsAt"))).timestamp()
    except ValueError as error:
        raise InvalidInput(
            f"alerts[].startsAt is {alert.get('startsAt')!r}; it must be a time as in RFC 3339"
        ) from error
    return Told(
        fingerprint=fingerprint,
        name=labels["alertname"][:128],
        action=labels["belvedere_action"],
        version=labels.get("version"),
        summary=annotations.get("summary", "")[:512],
        status="firing" if status == "firing" else "resolved",
        began=began,
        heard=heard,
    )


def _strings(alert: Mapping[str, Any], field: str) -> dict[str, str]:
    given = alert.get(field) or {}
    if not isinstance(given, Mapping):
        raise InvalidInput(f"alerts[].{field} is {given!r}; it must be an object of strings")
    return {str(name): str(value) for name, value in given.items()}


def for_decision(told: Iterable[Told], *, since: float | None) -> tuple[Alert, ...]:
    """Return firing alerts as the decision takes them.

    An abort that began before this rollout is about an earlier try of the same version. Its clock is Prometheus', so a few
    seconds are allowed.
    """
    found: list[Alert] = []
    for one in told:
        action = next((action for action in ACTIONS if action == one.action), None)
        if action is None or (action == "abort" and (since is None or one.began < since - CLOCK_SKEW_SECONDS)):
            continue
        found.append(Alert(name=one.name, action=action, version=one.version, summary=one.summary))
    return tuple(found)


CLOCK_SKEW_SECONDS = 2.0
