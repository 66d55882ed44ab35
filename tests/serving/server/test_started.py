"""What is set in a process that serves: how often Python looks for circles, and what Ray's gRPC servers are made with."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from belvedere_serving.server.grpc_door import WAITING
from belvedere_serving.server.service import SELDOM, collect_seldom


@pytest.fixture
def collecting() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*before)


@pytest.fixture
def options_of_ray() -> Iterator[list[Any]]:
    """The list that Ray's class of servers reads; afterwards it is as it was."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own
        from ray.serve._private.grpc_util import DEFAULT_GRPC_SERVER_OPTIONS
    options: list[Any] = DEFAULT_GRPC_SERVER_OPTIONS
    before = list(options)
    yield options
    options[:] = before


def test_a_server_that_has_started_is_not_looked_through_for_circles(collecting: None) -> None:
    collect_seldom()
    assert gc.get_threshold() == SELDOM
    assert gc.get_freeze_count() > 10_000


def test_rays_grpc_servers_are_made_with_our_bound(options_of_ray: list[Any]) -> None:
    from belvedere_serving.server.app import bound_waiting_calls

    bound_waiting_calls()
    bound_waiting_calls()
    assert [one for one in options_of_ray if one in WAITING] == list(WAITING)
