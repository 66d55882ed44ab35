"""Bring an Envoy that is to end to where nobody misses it: clients are told to go, and what they asked is answered."""

from __future__ import annotations

from collections.abc import Callable

import httpx

from belvedere_platform.errors import Unavailable

IN_FLIGHT = "http.gateway.downstream_rq_active"
LOOK_EVERY_SECONDS = 0.5


def drain(
    client: httpx.Client,
    *,
    shortest_seconds: float,
    longest_seconds: float,
    monotonic: Callable[[], float],
    sleep: Callable[[float], None],
) -> int:
    """Return how many requests are still in flight: 0, unless the longest time ran out. client: of Envoy's admin interface.

    The shortest time is for those who send new requests: they must hear that this Envoy is no longer one to ask.
    Until its end new connections are still taken. Raises Unavailable when Envoy does not answer.
    """
    began = monotonic()
    _ask(client, "POST", "/drain_listeners?graceful&skip_exit")
    while True:
        left = num_in_flight(client)
        passed = monotonic() - began
        if passed >= longest_seconds or (left == 0 and passed >= shortest_seconds):
            return left
        sleep(LOOK_EVERY_SECONDS)


def num_in_flight(client: httpx.Client) -> int:
    """Return the number of requests that Envoy has taken and not answered yet. Raises Unavailable."""
    answer = _ask(client, "GET", f"/stats?filter=^{IN_FLIGHT}$").text
    # Envoy makes the counter with the listener; before that there is nobody to wait for.
    return int(answer.rpartition(":")[2]) if answer.strip() else 0


def _ask(client: httpx.Client, method: str, path: str) -> httpx.Response:
    try:
        return client.request(method, path).raise_for_status()
    except httpx.HTTPError as error:
        raise Unavailable(f"Envoy's admin interface does not answer {path} at {client.base_url}: {error}") from error
