"""Ask a container on this machine whether it is ready."""

from __future__ import annotations

import asyncio
import contextlib

from belvedere_operators.executors.template import Probe


async def failure_of(probe: Probe) -> str | None:
    """Return why the container is not ready, None when it is."""
    target = f"127.0.0.1:{probe.port}{probe.path or ''}"
    try:
        async with asyncio.timeout(probe.timeout_seconds):
            reader, writer = await asyncio.open_connection("127.0.0.1", probe.port)
            try:
                return await _failure_of_get(probe, reader, writer) if probe.path is not None else None
            finally:
                writer.close()
                with contextlib.suppress(ConnectionError):
                    await writer.wait_closed()
    except TimeoutError:
        return f"{target} did not answer within {probe.timeout_seconds:g} s"
    except OSError as error:
        return f"{target} cannot be reached: {error.strerror or error}"


async def _failure_of_get(probe: Probe, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str | None:
    writer.write(
        f"GET {probe.path} HTTP/1.1\r\nHost: 127.0.0.1:{probe.port}\r\n"
        "User-Agent: kube-probe/belvedere\r\nAccept: */*\r\nConnection: close\r\n\r\n".encode()
    )
    await writer.drain()
    words = (await reader.readline()).split(maxsplit=2)
    if len(words) < 2 or not words[1].isdigit():
        return f"127.0.0.1:{probe.port}{probe.path} did not answer in HTTP"
    code = int(words[1])
    return None if 200 <= code < 400 else f"127.0.0.1:{probe.port}{probe.path} answered {code}"
