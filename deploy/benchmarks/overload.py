"""What a server answers when three times as much comes as it can: our application on Ray Serve, and the same server without Ray.

Where there are two cores or more the client has one of its own. What it sends comes to a server from other machines, and on the
server's cores it would take from them, at three times the peak, what half of the answers cost.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from belvedere_platform.telemetry.benchmark import Row, result
from belvedere_serving.client import grpc_load, load
from belvedere_serving.client.load import Outcome

DEADLINE_SECONDS = 1.0
TIMES = 3
"""How many times the peak is sent."""


@dataclass(frozen=True, kw_only=True)
class Overload:
    """One server under too much load."""

    peak: float
    """Answers a second to as many clients as fill its batches: the most before and after, as other work may have disturbed either."""
    rate: float
    """Requests a second that were sent."""
    outcome: Outcome
    warm: Outcome
    memory: tuple[float, float]
    """MiB before and after, behind the warm-up; 0 where the process was not found."""

    @property
    def goodput(self) -> float:
        """Return the answers in time, a second."""
        return len([taken for taken in self.outcome.latencies if taken <= DEADLINE_SECONDS]) / self.outcome.seconds


def server_and_client_cores() -> tuple[set[int], set[int]]:
    """Return which cores the server has, and which the client."""
    mine = sorted(os.sched_getaffinity(0))
    return (set(mine[:-1]), {mine[-1]}) if len(mine) > 1 else (set(mine), set(mine))


@contextlib.contextmanager
def on_cores(cores: set[int]) -> Iterator[None]:
    """Keep this thread, and what it starts, to some cores for the time of a with block; what was started stays there."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@dataclass(frozen=True, kw_only=True)
class Way:
    """How a server is reached: its address with the client's loops, all that they need but their load."""

    said: str
    closed_loop: Callable[..., Awaitable[Outcome]]
    open_loop: Callable[..., Awaitable[Outcome]]


def over_http(url: str, given: Sequence[load.Body]) -> Way:
    """Return the way to a server over HTTP."""
    return Way(
        said=url, closed_loop=partial(load.closed_loop, url, given), open_loop=partial(load.open_loop, url, given)
    )


def over_grpc(address: str, given: Sequence[bytes]) -> Way:
    """Return the way to a server over gRPC."""
    loops = partial(grpc_load.closed_loop, address, given), partial(grpc_load.open_loop, address, given)
    return Way(said=f"grpc://{address}", closed_loop=loops[0], open_loop=loops[1])


async def overload(
    way: Way, *, seconds: float, memory_mib: Callable[[], float], say: Callable[[str], None]
) -> Overload:
    """Find the peak of a server, then send three times as much for so long, and look at the peak again."""

    async def peak_now() -> float:
        return max([(await way.closed_loop(clients=32, seconds=5)).per_second for _ in range(2)])

    peak = await peak_now()
    rate = TIMES * peak
    say(f"{way.said}: peak {peak:.0f}/s; now {rate:.0f}/s for {seconds:.0f} s")
    warm = await way.open_loop(rate=rate, seconds=min(10.0, seconds / 4), deadline_seconds=DEADLINE_SECONDS)
    before = memory_mib()
    outcome = await way.open_loop(rate=rate, seconds=seconds, deadline_seconds=DEADLINE_SECONDS)
    after = memory_mib()
    peak = max(peak, await peak_now())
    say(f"{way.said}: peak {peak:.0f}/s before and after; {outcome.statuses}")
    return Overload(peak=peak, rate=rate, outcome=outcome, warm=warm, memory=(before, after))


def overload_rows(found: Overload, *, name: str, seconds: float) -> list[Row]:
    """Return the rows of one server; their names begin with `name`."""
    outcome, (before, after) = found.outcome, found.memory
    statuses = dict(sorted((found.warm.statuses + outcome.statuses).items()))
    servers, client = server_and_client_cores()
    where = f"{len(servers)} core for the server, another for the client" if servers != client else "one core for both"
    note = f"{seconds:.0f} s at {found.rate:.0f}/s, {found.rate / found.peak:.1f} times the peak; {where}; answers: {statuses}"
    rows = [
        result(
            f"{name}_goodput_ratio",
            found.goodput / found.peak,
            "share",
            "higher",
            0.9,
            own_value=found.goodput,
            peer="peak",
            peer_value=found.peak,
            note=note,
        ),
        result(
            f"{name}_rss_growth_mib",
            after - before if before else None,
            "MiB",
            "lower",
            50.0,
            own_value=after,
            note="after a warm-up under the same load" if before else "the server's process was not found",
        ),
        result(
            f"{name}_accepted_p99_ms",
            outcome.percentile(99),
            "ms",
            "lower",
            1000 * DEADLINE_SECONDS,
            note="at the client",
        ),
        result(
            f"{name}_refused_p50_ms",
            1000 * float(np.median(outcome.refused)) if outcome.refused else None,
            "ms",
            "lower",
            None,
            note="all that was not answered well, at the client",
        ),
    ]
    return rows
