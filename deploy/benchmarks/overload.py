"""What a server answers when three times as much comes as it can: our application on Ray Serve, and the same server without Ray.

Where there are two cores or more the client has one of its own. What it sends comes to a server from other machines, and on the
server's cores it would take from them, at three times the peak, what half of the answers cost.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from belvedere_platform.telemetry.benchmark import Row, result
from belvedere_serving.client import grpc_load, load
from belvedere_serving.client.load import Outcome
from usage import Usage

DEADLINE_SECONDS = 1.0
TIMES = 3
"""How many times the peak is sent."""


@dataclass(frozen=True, kw_only=True)
class Overload:
    """One server under too much load."""

    peaks: tuple[float, ...]
    """Answers a second to as many clients as fill its batches, each time that was looked at, before and after."""
    answer_seconds: float
    """Processor time of the server for an answer at its peak."""
    rate: float
    """Requests a second that were sent."""
    outcome: Outcome
    warm: Outcome
    server: tuple[Usage, Usage]
    """What the server had used before and after, behind the warm-up; nothing where its process was not found."""
    client_seconds: float
    """Processor time that this process took to send and to receive all that."""

    @property
    def peak(self) -> float:
        """Return the most of them, as other work may have disturbed any."""
        return max(self.peaks)

    @property
    def goodput(self) -> float:
        """Return the answers in time, a second."""
        return len([taken for taken in self.outcome.latencies if taken <= DEADLINE_SECONDS]) / self.outcome.seconds

    @property
    def refusal_microseconds(self) -> float | None:
        """Return the server's processor time by the number of refusals, of what answers do not account for."""
        before, after = self.server
        if not before.memory_mib or not self.outcome.refused:
            return None
        more = after.cpu_seconds - before.cpu_seconds - self.answer_seconds * len(self.outcome.latencies)
        return 1e6 * more / len(self.outcome.refused)

    @property
    def client(self) -> str:
        """Return in words what the client took of its core: one that had no time left would not send what it should."""
        microseconds = 1e6 * self.client_seconds / max(1, self.outcome.statuses.total())
        return f"the client took {self.client_seconds / self.outcome.seconds:.2f} of a core, {microseconds:.0f} µs a request"


def server_and_client_cores() -> tuple[set[int], set[int]]:
    """Return which cores the server has, and which the client."""
    mine = sorted(os.sched_getaffinity(0))
    return (set(mine[:-1]), {mine[-1]}) if len(mine) > 1 else (set(mine), set(mine))


def said_cores(servers: set[int], client: set[int]) -> str:
    """Return in words who has which cores."""
    return "one core for all" if servers == client else f"{len(servers)} core for the server, another for the client"


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


async def overload(way: Way, *, seconds: float, used: Callable[[], Usage], say: Callable[[str], None]) -> Overload:
    """Find the peak of a server, then send three times as much for so long, and look at the peak again."""

    async def looked() -> list[Outcome]:
        return [await way.closed_loop(clients=32, seconds=5) for _ in range(2)]

    idle = used()
    peaks = await looked()
    answer_seconds = (used().cpu_seconds - idle.cpu_seconds) / max(1, sum(len(one.latencies) for one in peaks))
    peak = max(one.per_second for one in peaks)
    rate = TIMES * peak
    say(f"{way.said}: peak {peak:.0f}/s; now {rate:.0f}/s for {seconds:.0f} s")
    warm = await way.open_loop(rate=rate, seconds=min(10.0, seconds / 4), deadline_seconds=DEADLINE_SECONDS)
    before, mine = used(), time.process_time()
    outcome = await way.open_loop(rate=rate, seconds=seconds, deadline_seconds=DEADLINE_SECONDS)
    after, mine = used(), time.process_time() - mine
    peaks += await looked()
    found = Overload(
        peaks=tuple(one.per_second for one in peaks),
        answer_seconds=answer_seconds,
        rate=rate,
        outcome=outcome,
        warm=warm,
        server=(before, after),
        client_seconds=mine,
    )
    say(f"{way.said}: peak {found.peak:.0f}/s before and after; {outcome.statuses}")
    return found


def overload_rows(found: Overload, *, name: str, where: str) -> list[Row]:
    """Return the rows of one server; their names begin with `name`. `where`: who had which cores."""
    outcome, (before, after) = found.outcome, found.server
    refused = 1000 * float(np.median(outcome.refused)) if outcome.refused else None
    grown = after.memory_mib - before.memory_mib if before.memory_mib else None
    own = 1e6 * found.answer_seconds
    median = statistics.median(found.peaks)
    return [
        _goodput(f"{name}_goodput_ratio", found, "peak", found.peak, 0.9, _how(found, where)),
        _goodput(
            f"{name}_goodput_median_ratio",
            found,
            "the median of the looks at the peak",
            median,
            None,
            "where a machine's speed drifts, the most of the looks is more than what it had to give meanwhile",
        ),
        _row(
            f"{name}_rss_growth_mib",
            grown,
            "MiB",
            50.0,
            f"to {after.memory_mib:.0f} MiB, after a warm-up under the same load"
            if before.memory_mib
            else "the server's process was not found",
        ),
        _row(f"{name}_accepted_p99_ms", outcome.percentile(99), "ms", 1000 * DEADLINE_SECONDS, "at the client"),
        _row(f"{name}_refused_p50_ms", refused, "ms", None, "all that was not answered well, at the client"),
        _row(
            f"{name}_refusal_cpu_us",
            found.refusal_microseconds,
            "us",
            None,
            f"the server's processor time beyond {own:.0f} µs for each answer, as at its peak, by the number of refusals",
        ),
    ]


def _goodput(name: str, found: Overload, peer: str, peak: float, target: float | None, note: str) -> Row:
    return result(
        name,
        found.goodput / peak,
        "share",
        "higher",
        target,
        own_value=found.goodput,
        peer=peer,
        peer_value=peak,
        note=note,
    )


def _row(name: str, value: float | None, unit: str, target: float | None, note: str) -> Row:
    return result(name, value, unit, "lower", target, note=note)


def _how(found: Overload, where: str) -> str:
    """Return in words what was sent to what, and how it was answered."""
    statuses = dict(sorted((found.warm.statuses + found.outcome.statuses).items()))
    return (
        f"{found.outcome.seconds:.0f} s at {found.rate:.0f}/s, {found.rate / found.peak:.1f} times the peak, "
        f"the most of {', '.join(f'{one:.0f}' for one in found.peaks)} before and after; "
        f"{where}; {found.client}; answers: {statuses}"
    )
