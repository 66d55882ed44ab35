from __future__ import annotations

import socket
from itertools import cycle
from pathlib import Path

import pytest

from belvedere_platform import ports
from belvedere_platform.errors import Unavailable
from belvedere_platform.ports import free_port, free_ports


def test_ports_are_free_and_none_comes_twice() -> None:
    found = [*free_ports(40), *(free_port() for _ in range(40))]
    assert len(set(found)) == 80
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", found[0]))


@pytest.mark.skipif(
    not Path("/proc/sys/net/ipv4/ip_local_port_range").exists(), reason="only Linux says which these are"
)
def test_no_connection_gets_one() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as connection,
    ):
        assert connection.getsockname()[1] not in ports._CHOICE


def test_what_is_bound_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, third = free_ports(3)
    monkeypatch.setattr(ports, "_in_order_of_chance", cycle([first, second, third]))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", second))
        assert free_ports(2) == [first, third]


def test_too_many_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "_CHOICE", range(20_000, 20_002))
    monkeypatch.setattr(ports, "_in_order_of_chance", cycle([20_000, 20_001]))
    with pytest.raises(Unavailable, match="3 free ports are needed, of 20000 to 20001 there are"):
        free_ports(3)
