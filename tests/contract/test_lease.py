"""Leader election on either store: one leads, a silent one is replaced, and a leader gives back what it took."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from belvedere_operators.runtime.clock import FakeClock
from belvedere_operators.runtime.lease import LeaderElection, LeadershipLost, LeaseTimes
from belvedere_platform.errors import Unavailable
from belvedere_platform.store import Manifest, ObjectStore
from belvedere_platform.store.kinds import LEASE

PATIENCE_SECONDS = 60
STEP_SECONDS = 0.5
TIMES = LeaseTimes(lease_seconds=15, renew_seconds=10, retry_seconds=2)
Candidate = Callable[..., LeaderElection]


class NoticedClock(FakeClock):
    """A clock that says when someone begins to sleep."""

    def __init__(self) -> None:
        super().__init__()
        self.slept = asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        self.slept.set()
        await super().sleep(seconds)


@pytest.fixture
def clock() -> NoticedClock:
    return NoticedClock()


@pytest.fixture
def candidate(store: ObjectStore, namespace: str, clock: NoticedClock) -> Candidate:
    """Make a candidate for the one lease."""

    def make(identity: str, through: Any = store, clock: NoticedClock = clock) -> LeaderElection:
        return LeaderElection(
            through,
            namespace=namespace,
            name="operator",
            identity=identity,
            clock=clock,
            times=TIMES,
            random=Random(1),
        )

    return make


class Breakable:
    """A store that answers as long as it is told to."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self.works = True

    async def get(self, *arguments: Any) -> Manifest:
        self.check()
        return await self._store.get(*arguments)

    async def apply(self, manifest: Manifest, **options: Any) -> Manifest:
        self.check()
        return await self._store.apply(manifest, **options)

    def check(self) -> None:
        if not self.works:
            raise Unavailable("cut off")


class Silent(Breakable):
    """One that answers no more when it is told to."""

    async def apply(self, manifest: Manifest, **options: Any) -> Manifest:
        if not self.works:
            await asyncio.Event().wait()
        return await super().apply(manifest, **options)


async def advance_until(clock: NoticedClock, task: asyncio.Future[Any], seconds: float) -> None:
    """Let time pass in steps, each only when the store has answered whoever asked it, until the task is done."""
    passed = 0.0
    while not task.done() and passed < seconds:
        if not clock.num_sleepers:
            clock.slept.clear()
            sleeping = asyncio.ensure_future(clock.slept.wait())
            await asyncio.wait((task, sleeping), timeout=PATIENCE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            assert task.done() or sleeping.done()
            sleeping.cancel()
        await clock.advance(STEP_SECONDS)
        passed += STEP_SECONDS


async def holder(store: ObjectStore, namespace: str) -> dict[str, Any]:
    spec: dict[str, Any] = (await store.get(LEASE, "operator", namespace))["spec"]
    return spec


async def test_a_lease_that_nobody_has_is_taken_at_once(
    store: ObjectStore, namespace: str, candidate: Candidate
) -> None:
    await candidate("one").acquire()
    spec = await holder(store, namespace)
    assert spec["holderIdentity"] == "one"
    assert spec["leaseDurationSeconds"] == 15
    assert spec["leaseTransitions"] == 0


async def test_of_two_that_come_at_once_one_leads(store: ObjectStore, namespace: str, candidate: Candidate) -> None:
    tasks = {name: asyncio.ensure_future(candidate(name).acquire()) for name in ("one", "two", "three")}
    await asyncio.wait(tasks.values(), return_when=asyncio.FIRST_COMPLETED)
    spec = await holder(store, namespace)
    for task in tasks.values():
        task.cancel()
    done = [name for name, task in tasks.items() if task.done()]
    await asyncio.gather(*tasks.values(), return_exceptions=True)
    assert done == [spec["holderIdentity"]]


async def test_who_is_silent_is_replaced_and_who_renews_is_not(
    store: ObjectStore, namespace: str, candidate: Candidate, clock: NoticedClock
) -> None:
    own_clock = NoticedClock()
    first = candidate("one", clock=own_clock)
    await first.acquire()
    second = asyncio.ensure_future(candidate("two").acquire())
    for _ in range(4):
        await advance_until(clock, second, 8)
        await own_clock.advance(8)
        await first._renew()
    assert not second.done()
    began = clock.monotonic()
    await advance_until(clock, second, 60)
    assert second.done()
    # It may look just before the last renewal and so see it one look later, and find it expired another look later.
    longest_pause = TIMES.retry_seconds * 1.2
    assert TIMES.lease_seconds <= clock.monotonic() - began <= TIMES.lease_seconds + 2 * longest_pause + STEP_SECONDS
    spec = await holder(store, namespace)
    assert (spec["holderIdentity"], spec["leaseTransitions"]) == ("two", 1)
    with pytest.raises(LeadershipLost, match="held by two"):
        await first._renew()


async def test_work_ends_and_the_lease_is_free_for_the_next(
    store: ObjectStore, namespace: str, candidate: Candidate
) -> None:
    worked = []

    async def work() -> None:
        worked.append((await holder(store, namespace))["holderIdentity"])

    await candidate("one").lead(work)
    assert (await holder(store, namespace)).get("holderIdentity", "") == ""
    await candidate("two").lead(work)
    assert worked == ["one", "two"]


async def test_a_leader_that_is_cancelled_stops_its_work_and_gives_the_lease_back(
    store: ObjectStore, namespace: str, candidate: Candidate
) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            # It is still ours while the work comes to an end.
            assert (await holder(store, namespace))["holderIdentity"] == "one"
            ended.set()

    leading = asyncio.ensure_future(candidate("one").lead(work))
    await begun.wait()
    leading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leading
    assert ended.is_set()
    assert (await holder(store, namespace)).get("holderIdentity", "") == ""


async def test_a_leader_that_is_cut_off_stops_before_another_may_start(
    store: ObjectStore, candidate: Candidate, clock: NoticedClock
) -> None:
    breakable = Breakable(store)
    begun, ended = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    leading = asyncio.ensure_future(candidate("one", through=breakable).lead(work))
    await begun.wait()
    breakable.works = False
    await advance_until(clock, leading, 60)
    assert ended.is_set()
    assert clock.monotonic() < TIMES.lease_seconds
    with pytest.raises(LeadershipLost, match="could not be renewed for 10 s: cut off"):
        await leading


async def test_a_server_that_does_not_answer_is_named_as_the_cause(
    store: ObjectStore, candidate: Candidate, clock: NoticedClock, caplog: pytest.LogCaptureFixture
) -> None:
    silent = Silent(store)
    leader = candidate("one", through=silent)
    await leader.acquire()
    silent.works = False
    holding = asyncio.ensure_future(leader.hold())
    await advance_until(clock, holding, 60)
    with pytest.raises(LeadershipLost, match="could not be renewed for 10 s: no answer in time"):
        await holding
    told = [record.getMessage() for record in caplog.records]
    assert told == ["the lease operator was not renewed: no answer in time"]


async def test_a_foreign_label_on_the_lease_does_no_harm(
    store: ObjectStore, namespace: str, candidate: Candidate
) -> None:
    leader = candidate("one")
    await leader.acquire()
    labelled = {
        "apiVersion": LEASE.api_version,
        "kind": "Lease",
        "metadata": {"name": "operator", "namespace": namespace, "labels": {"seen": "yes"}},
    }
    await store.apply(labelled, field_manager="someone")
    await leader._renew()
    lease = await store.get(LEASE, "operator", namespace)
    assert lease["metadata"]["labels"] == {"seen": "yes"}
    assert lease["spec"]["holderIdentity"] == "one"


async def test_the_failure_of_the_work_is_raised_and_the_lease_given_back(
    store: ObjectStore, namespace: str, candidate: Candidate
) -> None:
    async def work() -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        await candidate("one").lead(work)
    assert (await holder(store, namespace)).get("holderIdentity", "") == ""
