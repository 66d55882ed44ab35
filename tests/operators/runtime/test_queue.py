"""The work queue: once, one at a time, again when dirtied, later when failing."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from belvedere_operators.runtime import FakeClock, Key, WorkQueue
from belvedere_operators.runtime.clock import settle

A, B = Key("default", "a"), Key("default", "b")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def queue(clock: FakeClock) -> WorkQueue:
    return WorkQueue(clock, base_seconds=1, cap_seconds=60)


async def test_keys_come_in_order_and_each_once(queue: WorkQueue) -> None:
    for key in (A, B, A):
        queue.add(key)
    assert len(queue) == 2
    assert [await queue.get(), await queue.get()] == [A, B]
    assert len(queue) == 0
    assert not queue.idle


async def test_a_key_dirtied_while_handled_comes_again_when_that_ends(queue: WorkQueue) -> None:
    queue.add(A)
    await queue.get()
    queue.add(A)
    queue.add(A)
    assert len(queue) == 0
    queue.done(A)
    assert len(queue) == 1
    assert await queue.get() == A
    queue.done(A)
    assert queue.idle


async def test_get_waits_for_a_key(queue: WorkQueue) -> None:
    waiting = asyncio.create_task(queue.get())
    await settle()
    assert not waiting.done()
    queue.add(A)
    assert await waiting == A


async def test_of_several_times_the_earliest_counts(queue: WorkQueue, clock: FakeClock) -> None:
    queue.add_after(A, 30)
    queue.add_after(A, 10)
    queue.add_after(A, 20)
    await clock.advance(9.9)
    assert len(queue) == 0
    await clock.advance(0.2)
    assert len(queue) == 1
    await clock.advance(100)
    assert len(queue) == 1
    assert clock.num_sleepers == 0


async def test_no_delay_is_now(queue: WorkQueue) -> None:
    queue.add_after(A, 0)
    assert len(queue) == 1


async def test_each_key_backs_off_alone_up_to_a_cap(queue: WorkQueue, clock: FakeClock) -> None:
    delays = []
    for _ in range(8):
        delays.append(queue.retry(A))
        await clock.advance(delays[-1])
    assert delays == [1, 2, 4, 8, 16, 32, 60, 60]
    assert queue.retry(B) == 1
    queue.forget(A)
    assert queue.retry(A) == 1
    queue.close()


async def test_very_many_failures_stay_at_the_cap(queue: WorkQueue) -> None:
    assert max(queue.retry(A) for _ in range(2000)) == 60
    queue.close()


async def test_closing_ends_every_wait(queue: WorkQueue, clock: FakeClock) -> None:
    waiting = [asyncio.create_task(queue.get()) for _ in range(3)]
    queue.add_after(A, 5)
    await settle()
    queue.close()
    assert await asyncio.gather(*waiting) == [None, None, None]
    queue.add(A)
    await clock.advance(10)
    assert len(queue) == 0


async def test_a_cancelled_worker_passes_its_wake_up_on(queue: WorkQueue) -> None:
    first, second = asyncio.create_task(queue.get()), asyncio.create_task(queue.get())
    await settle()
    queue.add(A)
    first.cancel()
    assert await second == A
    with pytest.raises(asyncio.CancelledError):
        await first


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 2**32), workers=st.integers(1, 4), adds=st.integers(1, 60))
def test_no_key_is_handled_twice_at_once_and_none_is_lost(seed: int, workers: int, adds: int) -> None:
    """After the last add of a key some handling of it begins: that is all that level-triggered control needs."""

    async def scenario() -> None:
        chance = random.Random(seed)
        queue = WorkQueue(FakeClock())
        busy: Counter[Key] = Counter()
        changed: Counter[Key] = Counter()
        seen: Counter[Key] = Counter()

        async def work() -> None:
            while (key := await queue.get()) is not None:
                busy[key] += 1
                assert busy[key] == 1
                seen[key] = changed[key]
                for _ in range(chance.randrange(4)):
                    await asyncio.sleep(0)
                busy[key] -= 1
                queue.done(key)

        tasks = [asyncio.create_task(work()) for _ in range(workers)]
        for _ in range(adds):
            key = Key("default", chance.choice("abc"))
            changed[key] += 1
            queue.add(key)
            if chance.random() < 0.5:
                await asyncio.sleep(0)
        while not queue.idle:  # noqa: ASYNC110 (each turn lets the workers take one step)
            await asyncio.sleep(0)
        assert seen == changed
        queue.close()
        await asyncio.gather(*tasks)

    asyncio.run(scenario())
