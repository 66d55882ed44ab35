"""Ports for programs that are told where to listen before they do."""

from __future__ import annotations

import random
import socket
from contextlib import ExitStack
from itertools import cycle, islice

from belvedere_platform.errors import Unavailable

LOOPBACK = "127.0.0.1"
# Above Ray's workers (10002 to 19999), below the services of Kubernetes (30000 to 32767) and what Linux gives to connections
# (from 32768): one of those could be taken again before the program that it was chosen for has bound it.
_CHOICE = range(20_000, 30_000)
# Not the common generator: tests seed it, and then two processes would choose the same.
_in_order_of_chance = cycle(random.SystemRandom().sample(_CHOICE, len(_CHOICE)))


def free_ports(number: int) -> list[int]:
    """Return as many different TCP ports as are asked for, none of which anybody has bound on loopback.

    A process gets none a second time before it has had all, so they may be asked for one by one.

    Raises:
        Unavailable: fewer are free.
    """
    found: list[int] = []
    with ExitStack() as held:
        for port in islice(_in_order_of_chance, len(_CHOICE)):
            if len(found) == number:
                return found
            probe = held.enter_context(socket.socket())
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                continue
            found.append(port)
    if len(found) < number:
        raise Unavailable(
            f"{number} free ports are needed, of {_CHOICE.start} to {_CHOICE.stop - 1} there are {len(found)}"
        )
    return found


def free_port() -> int:
    """Return one of `free_ports`."""
    (port,) = free_ports(1)
    return port
