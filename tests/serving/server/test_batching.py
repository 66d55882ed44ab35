"""Requests share runs, wait no longer than they must, and fail alone. The engine here is a function."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from belvedere_platform.protocol import Reason, V2Error
from belvedere_serving.server.batching import Batcher
from belvedere_serving.server.waiting import Array, BatchPolicy, Sizing

FAR = 1e12


class Engine:
    """Doubles its input; fails on 13; waits at a gate when there is one."""

    def __init__(self) -> None:
        self.batches: list[list[float]] = []
        self.gate: asyncio.Event | None = None
        self.entered = asyncio.Event()

    async def __call__(self, rows: Array) -> Array:
        self.batches.append(rows[:, 0].tolist())
        self.entered.set()
        if self.gate is not None:
            await self.gate.wait()
        if (rows == 13).any():
            raise RuntimeError("13 has no row in the table")
        return rows * 2


def a_batcher(
    engine: Callable[[Array], Awaitable[Array]], metrics: Any, *, sizing: Sizing | None = None, **changes: Any
) -> Batcher:
    policy = {"max_rows": 4, "wait_seconds": 0.0, "max_waiting_rows": 8, **changes}
    return Batcher("m", engine, BatchPolicy(**policy), metrics, sizing=sizing)


def rows(*values: float) -> Array:
    return np.array(values, np.float32)[:, None]


async def test_what_arrives_during_a_run_shares_the_next_one(recorded: Any) -> None:
    engine = Engine()
    engine.gate = asyncio.Event()
    batcher = a_batcher(engine, recorded)
    first = asyncio.create_task(batcher.submit(rows(1), FAR))
    await engine.entered.wait()
    others = [asyncio.create_task(batcher.submit(rows(value), FAR)) for value in (2, 3, 4)]
    await asyncio.sleep(0)
    engine.gate.set()
    assert [float(answer[0, 0]) for answer in await asyncio.gather(first, *others)] == [2, 4, 6, 8]
    assert engine.batches == [[1], [2, 3, 4]]
    assert recorded.batches == [1, 3]
    await batcher.close()


async def test_a_failing_request_fails_alone(recorded: Any) -> None:
    engine = Engine()
    engine.gate = asyncio.Event()
    batcher = a_batcher(engine, recorded)
    blocker = asyncio.create_task(batcher.submit(rows(0), FAR))
    await engine.entered.wait()
    tasks = [asyncio.create_task(batcher.submit(rows(value), FAR)) for value in (1, 13, 2)]
    await asyncio.sleep(0)
    engine.gate.set()
    answers = await asyncio.gather(blocker, *tasks, return_exceptions=True)
    assert isinstance(answers[2], V2Error)
    assert answers[2].reason is Reason.INTERNAL
    assert "13 has no row" in answers[2].message
    assert [float(answers[place][0, 0]) for place in (1, 3)] == [2, 4]  # type: ignore[index]
    assert engine.batches == [[0], [1, 13, 2], [1], [13], [2]]
    await batcher.close()


async def test_a_queue_that_is_empty_again_is_reported_so(recorded: Any) -> None:
    batcher = a_batcher(Engine(), recorded)
    with batcher.admitted(3):
        with batcher.admitted(2):
            assert recorded.queue_lengths == {"m": 5}
        await batcher.submit(rows(1, 2, 3), FAR)
    assert recorded.queue_lengths == {"m": 0}
    with batcher.admitted(1), pytest.raises(V2Error, match="queue is full"), batcher.admitted(12):
        pass
    assert recorded.queue_lengths == {"m": 0}
    await batcher.close()


async def test_a_full_queue_refuses_and_says_when_to_come_back(recorded: Any) -> None:
    batcher = a_batcher(Engine(), recorded)
    with batcher.admitted(12), pytest.raises(V2Error, match="queue is full") as caught, batcher.admitted(1):
        pass
    assert caught.value.reason is Reason.RESOURCE_EXHAUSTED
    assert caught.value.retry_after_seconds == 1
    assert recorded.dropped == [("m", "full")]
    with batcher.admitted(12):
        pass


async def test_a_request_whose_client_has_gone_is_not_run(recorded: Any) -> None:
    engine = Engine()
    engine.gate = asyncio.Event()
    batcher = a_batcher(engine, recorded)
    blocker = asyncio.create_task(batcher.submit(rows(0), FAR))
    await engine.entered.wait()
    gone = asyncio.create_task(batcher.submit(rows(7), FAR))
    await asyncio.sleep(0)
    gone.cancel()
    stays = asyncio.create_task(batcher.submit(rows(8), FAR))
    await asyncio.sleep(0)
    engine.gate.set()
    await asyncio.gather(blocker, stays)
    assert engine.batches == [[0], [8]]
    assert recorded.dropped == [("m", "gone")]
    await batcher.close()


async def test_a_request_whose_time_is_up_gets_an_error(recorded: Any) -> None:
    engine = Engine()
    engine.gate = asyncio.Event()
    batcher = a_batcher(engine, recorded)
    with pytest.raises(V2Error) as caught:
        await batcher.submit(rows(1), 0.0)
    assert caught.value.reason is Reason.DEADLINE_EXCEEDED
    await batcher.close()


async def test_a_value_that_is_no_number_is_an_error_of_its_request_only(recorded: Any) -> None:
    async def engine(given: Array) -> Array:
        return np.where(given == 5, np.nan, given)

    batcher = a_batcher(engine, recorded)
    assert await batcher.submit(rows(4), FAR) == 4
    with pytest.raises(V2Error, match="not a number") as caught:
        await batcher.submit(rows(5), FAR)
    assert caught.value.reason is Reason.INTERNAL
    await batcher.close()


async def test_closing_answers_what_still_waits(recorded: Any) -> None:
    engine = Engine()
    engine.gate = asyncio.Event()
    batcher = a_batcher(engine, recorded)
    running = asyncio.create_task(batcher.submit(rows(1), FAR))
    await engine.entered.wait()
    waiting = asyncio.create_task(batcher.submit(rows(2), FAR))
    await asyncio.sleep(0)
    await batcher.close()
    with pytest.raises(V2Error, match="stopping"):
        await waiting
    with pytest.raises(V2Error, match="stopping"):
        await running


async def test_a_batch_waits_for_a_request_that_is_being_prepared(recorded: Any) -> None:
    engine = Engine()
    batcher = a_batcher(engine, recorded, wait_seconds=30.0)
    with batcher.coming():
        first = asyncio.create_task(batcher.submit(rows(1), FAR))
        await asyncio.sleep(0)
        second = asyncio.create_task(batcher.submit(rows(2, 3, 4), FAR))
        await asyncio.gather(first, second)
    assert engine.batches == [[1, 2, 3, 4]]
    await batcher.close()


@dataclass
class TimedEngine:
    """An engine, and a clock that stands still but for its runs: so long for each, and so long more for each row."""

    seconds: float = 0.0
    seconds_a_row: float = 0.0
    now: float = 0.0
    batches: list[list[float]] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, given: Array) -> Array:
        self.batches.append(given[:, 0].tolist())
        await self.gate.wait()
        self.now += self.seconds + self.seconds_a_row * len(given)
        return given

    async def batches_of(self, recorded: Any, *batches: Sequence[float]) -> list[list[float]]:
        """Return the batches that come of one request and then of these, which come one by one when the last were answered."""
        policy = BatchPolicy(max_rows=4, wait_seconds=30.0, max_waiting_rows=8)
        batcher = Batcher("m", self, policy, recorded, clock=lambda: self.now)
        first = asyncio.create_task(batcher.submit(rows(1), FAR))
        await asyncio.sleep(0)
        for batch in batches:
            others = []
            for value in batch:
                others.append(asyncio.create_task(batcher.submit(rows(value), FAR)))
                for _ in range(5):  # turns enough for the batcher to take it, if it will
                    await asyncio.sleep(0)
            self.gate.set()
            await asyncio.gather(first, *others)
        await batcher.close()
        return self.batches


async def test_a_batch_waits_for_as_many_as_came_last_and_for_no_more(recorded: Any) -> None:
    # The first two find the engine at work; the others find it free, and the second of them is the last awaited.
    found = await TimedEngine(seconds=60).batches_of(recorded, (2, 3), (4, 5))
    assert found == [[1], [2, 3], [4, 5]]


async def test_nobody_is_waited_for_whose_company_saves_less_than_the_wait(recorded: Any) -> None:
    found = await TimedEngine(seconds=20, seconds_a_row=60).batches_of(recorded, (2, 3), (4, 5))
    assert found == [[1], [2, 3], [4], [5]]


@settings(deadline=None, max_examples=40)
@given(
    requests=st.lists(st.lists(st.integers(0, 15), min_size=1, max_size=9), min_size=1, max_size=12),
    max_rows=st.integers(1, 6),
)
async def test_every_request_gets_its_own_rows_back(requests: list[list[int]], max_rows: int) -> None:
    from belvedere_serving.server.metrics import NoMetrics

    engine = Engine()
    batcher = a_batcher(engine, NoMetrics(), max_rows=max_rows)
    tasks = [asyncio.create_task(batcher.submit(rows(*request), FAR)) for request in requests]
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    for request, answer in zip(requests, answers, strict=True):
        if 13 in request:
            assert isinstance(answer, V2Error)
        else:
            assert not isinstance(answer, BaseException)
            assert answer[:, 0].tolist() == [2 * value for value in request]
    assert all(len(batch) <= max_rows for batch in engine.batches)
    assert batcher.work() == []
    await batcher.close()


class TextEngine:
    """Sums the tokens of each text; notes the shape of each run."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.gate = asyncio.Event()

    async def __call__(self, rows: Array) -> Array:
        self.shapes.append(rows.shape)
        await self.gate.wait()
        return rows.sum(1, keepdims=True).astype(np.float32)


LENGTHS = (2, 4, 8)


def text(*sizes: int) -> Array:
    """Return texts of so many ones each, padded to the longest length."""
    return (np.arange(LENGTHS[-1]) < np.array(sizes)[:, None]).astype(np.int64)


def by_tokens() -> Sizing:
    def lengths(tokens: Array) -> Any:
        return np.array(LENGTHS)[np.searchsorted(LENGTHS, tokens.sum(1))]

    return Sizing(full=LENGTHS[-1], lengths=lengths)


async def test_texts_are_run_with_others_of_their_length_oldest_first(recorded: Any) -> None:
    engine = TextEngine()
    batcher = a_batcher(engine, recorded, sizing=by_tokens())
    first = asyncio.create_task(batcher.submit(text(8), FAR))
    await asyncio.sleep(0)
    others = [asyncio.create_task(batcher.submit(text(size), FAR)) for size in (3, 7, 4, 1, 8)]
    await asyncio.sleep(0)
    engine.gate.set()
    answers = await asyncio.gather(first, *others)
    assert [float(answer[0, 0]) for answer in answers] == [8, 3, 7, 4, 1, 8]
    assert engine.shapes == [(1, 8), (2, 4), (2, 8), (1, 2)]
    await batcher.close()


async def test_a_batch_has_so_many_tokens_so_more_of_short_texts(recorded: Any) -> None:
    engine = TextEngine()
    engine.gate.set()
    batcher = a_batcher(engine, recorded, sizing=by_tokens(), max_rows=2)
    answer = await batcher.submit(text(*[2] * 9, *[8] * 3), FAR)
    assert answer[:, 0].tolist() == [2] * 9 + [8] * 3
    assert engine.shapes == [(8, 2), (1, 2), (2, 8), (1, 8)]
    await batcher.close()


async def test_what_waits_is_forecast_by_its_tokens(recorded: Any) -> None:
    engine = TextEngine()
    engine.gate.set()
    batcher = a_batcher(engine, recorded, sizing=by_tokens(), max_rows=2, max_waiting_rows=64)
    batcher.running.observe(8, 1.0)
    assert batcher.work(4) == [2.0, 2.0]  # not seen before, they are taken for long ones
    for _ in range(24):
        await batcher.submit(text(2), FAR)
    batcher.running.observe(8, 1.0)
    assert len(batcher.work(4)) == 1
    await batcher.close()


@settings(deadline=None, max_examples=40)
@given(
    requests=st.lists(st.lists(st.integers(0, 8), min_size=1, max_size=9), min_size=1, max_size=12),
    max_rows=st.integers(1, 4),
)
async def test_every_text_gets_its_own_answer_and_no_batch_has_too_many_tokens(
    requests: list[list[int]], max_rows: int
) -> None:
    from belvedere_serving.server.metrics import NoMetrics

    engine = TextEngine()
    engine.gate.set()
    batcher = a_batcher(engine, NoMetrics(), sizing=by_tokens(), max_rows=max_rows)
    answers = await asyncio.gather(*(batcher.submit(text(*request), FAR) for request in requests))
    for request, answer in zip(requests, answers, strict=True):
        assert answer[:, 0].tolist() == request
    assert all(rows * length <= max_rows * LENGTHS[-1] for rows, length in engine.shapes)
    await batcher.close()
