"""When the next look at the metrics is due: bounded for all together, and soon for the few that wait for it."""

from __future__ import annotations

import pytest

from belvedere_operators.controllers.modelservice.journal import Journal, Looked
from belvedere_operators.controllers.modelservice.memory import Memory, look_seconds
from belvedere_operators.runtime import Key

WAITING = Journal(stable="v1", served=True, looked=Looked(time=1.0))
REACHED = WAITING.with_(looked=Looked(time=2.0, effective_weight={"v1": 100.0}))


def test_a_service_waits_from_its_first_replica_to_its_first_request() -> None:
    memory = Memory()
    keys = [Key("default", name) for name in "abc"]
    for key in keys:
        memory.keep(key, Journal(stable="v1"))
    assert memory.num_waiting == 0
    for key in keys:
        memory.keep(key, WAITING)
    assert memory.num_waiting == 3
    memory.keep(keys[0], REACHED)
    memory.keep(keys[1], WAITING.with_(looked=Looked(time=2.0, problem="Prometheus does not answer")))
    assert memory.num_waiting == 1
    memory.forget(keys[2])
    assert memory.num_waiting == 0


@pytest.mark.parametrize(
    ("journal", "num_services", "num_waiting", "seconds"),
    [
        (WAITING, 1, 1, 1.0),
        (WAITING, 1000, 1, 1.0),
        (WAITING, 1000, 200, 5.0),
        (WAITING, 1000, 1000, 15.0),
        (REACHED, 100, 0, 15.0),
        (REACHED, 1000, 0, 50.0),
    ],
)
def test_those_that_wait_share_their_looks_with_those_that_wait(
    journal: Journal, num_services: int, num_waiting: int, seconds: float
) -> None:
    assert look_seconds(15.0, journal, num_services=num_services, num_waiting=num_waiting) == seconds
