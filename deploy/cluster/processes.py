"""Ending every process that carries the mark of an instance."""

from __future__ import annotations

import signal
import time

from belvedere_operators.executors.identity import find_instance, wait_gone
from belvedere_platform.errors import Unavailable

END_TIMEOUT_SECONDS = 20.0


async def end_instance(instance: str) -> None:
    """Kill every process of an instance and wait until they are gone. Raises Unavailable for one that does not end."""
    deadline = time.monotonic() + END_TIMEOUT_SECONDS
    while members := find_instance(instance):
        for member in members:
            member.send(signal.SIGKILL)
        for member in members:
            if not await wait_gone(member, max(0.0, deadline - time.monotonic())):
                raise Unavailable(f"process {member.pid} of {instance} does not end")
