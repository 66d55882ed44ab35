"""What a server answers when three times as much comes as it can: our application on Ray Serve, and the same server without Ray.

Where there are two cores or more the client has one of its own. What it sends comes to a server from other machines, and on the
server's cores it would take from them, at three times the peak, what half of the answers cost.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from collections import Counter
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
ROUNDS = 5
"""The load is sent in so many parts, and the peak looked at before and after each: machines drift by more than what is asked for."""
LOOK_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class Overload:
    """One server under too much load."""

    looks: tuple[float, ...]
    """Answers a second to as many clients as fill its batches: before the first load and after each."""
    loads: tuple[Outcome, ...]
    answer_seconds: float
    """Processor time of the server for an answer at its peak."""
    rate: float
    """Requests a second that were sent."""
    warm: Outcome
    server_seconds: float
    """Processor time of the server under the loads."""
    memory_mib: tuple[float, float]
    """What the server held before the first load, behind the warm-up, and after the last; zeros where its process was not found."""
    client_seconds: float
    """Processor time that this process took to send and to receive all that."""

    @property
    def ratios(self) -> tuple[float, ...]:
        """Return, for each load, the answers in time a second as a share of what the looks before and after it gave."""
        around = zip(self.looks[:-1], self.looks[1:], strict=True)
        return tuple(goodput(load) / statistics.mean(two) for load, two in zip(self.loads, around, strict=True))

    @property
    def whole(self) -> Outcome:
        """Return all loads as one."""
        return Outcome(
            seconds=sum(load.seconds for load in self.loads),
            latencies=[taken for load in self.loads for taken in load.latencies],
            refused=[taken for load in self.loads for taken in load.refused],
            statuses=sum((load.statuses for load in self.loads), Counter()),
        )

    @property
    def refusal_microseconds(self) -> float | None:
        """Return the server's processor time by the number of refusals, of what answers do not account for."""
        whole = self.whole
        if not self.memory_mib[0] or not whole.refused:
            return None
        more = self.server_seconds - self.answer_seconds * len(whole.latencies)
        return 1e6 * more / len(whole.refused)

    @property
    def client(self) -> str:
        """Return in words what the client took of its core: one that had no time left would not send what it should."""
        whole = self.whole
        microseconds = 1e6 * self.client_seconds / max(1, whole.statuses.total())
        return f"the client took {self.client_seconds / whole.seconds:.2f} of a core, {microseconds:.0f} µs a request"


def goodput(outcome: Outcome) -> float:
    """Return the answers in time, a second."""
    return len([taken for taken in outcome.latencies if taken <= DEADLINE_SECONDS]) / outcome.seconds


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
    """Find the peak of a server, then send three times as much for so long in all, looking at the peak between."""

    async def look() -> Outcome:
        return await way.closed_loop(clients=32, seconds=LOOK_SECONDS)

    idle = used()
    first = [await look() for _ in range(2)]
    answer_seconds = (used().cpu_seconds - idle.cpu_seconds) / max(1, sum(len(one.latencies) for one in first))
    looks, loads = [max(one.per_second for one in first)], list[Outcome]()
    rate, each = TIMES * looks[0], seconds / ROUNDS
    say(f"{way.said}: peak {looks[0]:.0f}/s; now {rate:.0f}/s, {ROUNDS} times for {each:.0f} s")
    warm = await way.open_loop(rate=rate, seconds=min(10.0, each), deadline_seconds=DEADLINE_SECONDS)
    held, server_seconds, client_seconds = used().memory_mib, 0.0, 0.0
    for _ in range(ROUNDS):
        before, mine = used(), time.process_time()
        loads.append(await way.open_loop(rate=rate, seconds=each, deadline_seconds=DEADLINE_SECONDS))
        client_seconds += time.process_time() - mine
        after = used()
        server_seconds += after.cpu_seconds - before.cpu_seconds
        looks.append((await look()).per_second)
        say(f"{way.said}: {goodput(loads[-1]):.0f}/s in time, then {looks[-1]:.0f}/s at its peak")
    return Overload(
        looks=tuple(looks),
        loads=tuple(loads),
        answer_seconds=answer_seconds,
        rate=rate,
        warm=warm,
        server_seconds=server_seconds,
        memory_mib=(held, after.memory_mib),
        client_seconds=client_seconds,
    )


def overload_rows(found: Overload, *, name: str, where: str) -> list[Row]:
    """Return the rows of one server; their names begin with `name`. `where`: who had which cores."""
    whole, (before, after) = found.whole, found.memory_mib
    refused = 1000 * float(np.median(whole.refused)) if whole.refused else None
    own = 1e6 * found.answer_seconds
    return [
        *_goodput_rows(found, name, where),
        _row(
            f"{name}_rss_growth_mib",
            after - before if before else None,
            "MiB",
            50.0,
            f"to {after:.0f} MiB, after a warm-up under the same load"
            if before
            else "the server's process was not found",
        ),
        _row(f"{name}_accepted_p99_ms", whole.percentile(99), "ms", 1000 * DEADLINE_SECONDS, "at the client"),
        _row(f"{name}_refused_p50_ms", refused, "ms", None, "all that was not answered well, at the client"),
        _row(
            f"{name}_refusal_cpu_us",
            found.refusal_microseconds,
            "us",
            None,
            f"the server's processor time beyond {own:.0f} µs for each answer, as at its peak, by the number of refusals",
        ),
    ]


def _goodput_rows(found: Overload, name: str, where: str) -> list[Row]:
    """Return goodput as a share of the peak: load by load beside the looks around it, and all of it beside the most of the looks."""
    whole, ratios = found.whole, found.ratios
    most, in_time = max(found.looks), goodput(whole)
    return [
        result(
            f"{name}_goodput_ratio",
            statistics.median(ratios),
            "share",
            "higher",
            0.9,
            own_value=in_time,
            peer="the peak, looked at before and after each load",
            peer_value=statistics.median(found.looks),
            rounds=len(ratios),
            spread=[min(ratios), max(ratios)],
            note=_how(found, where),
        ),
        result(
            f"{name}_goodput_of_most",
            in_time / most,
            "share",
            "higher",
            None,
            own_value=in_time,
            peer="the most of the looks",
            peer_value=most,
            note="where a machine's speed drifts, the most of the looks is more than what it had to give meanwhile",
        ),
    ]


def _row(name: str, value: float | None, unit: str, target: float | None, note: str) -> Row:
    return result(name, value, unit, "lower", target, note=note)


def _how(found: Overload, where: str) -> str:
    """Return in words what was sent to what, and how it was answered."""
    whole = found.whole
    statuses = dict(sorted((found.warm.statuses + whole.statuses).items()))
    return (
        f"{whole.seconds:.0f} s in {len(found.loads)} loads at {found.rate:.0f}/s, {found.rate / max(found.looks):.1f} times the "
        f"most of the looks, {', '.join(f'{one:.0f}' for one in found.looks)}; {where}; {found.client}; answers: {statuses}"
    )
