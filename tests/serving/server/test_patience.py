"""Threads wait for each other while requests are refused, and no longer."""

from __future__ import annotations

import os
import sys
import threading

import pytest

from belvedere_platform.protocol import EMBED_TEXT
from belvedere_serving.server.patience import QUIET_SECONDS, Patience, threads_wait
from belvedere_serving.server.service import InferenceService
from timer import Timer


def test_threads_wait_from_the_first_refusal_until_a_while_after_the_last() -> None:
    told: list[bool] = []
    timer = Timer(QUIET_SECONDS)
    patience = Patience(wait=told.append, later=timer.later)
    for _ in range(3):
        patience.refused()
    assert told == [True]
    timer.ring()
    patience.refused()
    timer.ring()
    assert told == [True]
    timer.ring()
    assert told == [True, False]
    assert timer.due == []
    patience.refused()
    assert told == [True, False, True]
    patience.close()
    timer.ring()
    assert told == [True, False, True, False]
    assert timer.due == []


async def test_a_service_that_refuses_is_patient(recorded: object) -> None:
    told: list[bool] = []
    service = InferenceService([], recorded, patience=Patience(wait=told.append))  # type: ignore[arg-type]
    service.count_refused(EMBED_TEXT, "http")
    assert told == [True]
    await service.close()
    assert told == [True, False]


@pytest.mark.skipif(sys.platform != "linux", reason="other kernels have no batches of threads")
def test_all_threads_wait_but_those_of_another_priority() -> None:
    release, started = threading.Event(), threading.Barrier(3)
    found: dict[str, int] = {}

    def work(name: str, idle: bool) -> None:
        found[name] = threading.get_native_id()
        if idle:
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        started.wait()
        release.wait()

    threads = [threading.Thread(target=work, args=(name, name == "idle")) for name in ("plain", "idle")]
    for thread in threads:
        thread.start()
    started.wait()
    try:
        threads_wait(True)
        policies = [os.sched_getscheduler(found[name]) for name in ("plain", "idle")]
        assert policies == [os.SCHED_BATCH, os.SCHED_IDLE]
        assert os.sched_getscheduler(0) == os.SCHED_BATCH
        threads_wait(False)
        policies = [os.sched_getscheduler(found[name]) for name in ("plain", "idle")]
        assert policies == [os.SCHED_OTHER, os.SCHED_IDLE]
        assert os.sched_getscheduler(0) == os.SCHED_OTHER
    finally:
        release.set()
        for thread in threads:
            thread.join()
