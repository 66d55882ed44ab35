"""A TCP line that can be cut, for all that use it at once."""

from __future__ import annotations

import asyncio
from pathlib import Path
from urllib.parse import urlsplit

import yaml


class Wire:
    """Carries bytes between a port of its own and a far one. What is open when it is cut ends without a word."""

    def __init__(self, port: int, *, host: str = "127.0.0.1") -> None:
        self.port = port
        self.num_lines = 0
        self.near_port = 0
        self._host = host
        self._server: asyncio.Server | None = None
        self._ends: set[asyncio.StreamWriter] = set()

    async def open(self, near_port: int = 0) -> None:
        """Take new lines: on this port, on the one of before, or on a free one."""
        self._server = await asyncio.start_server(self._join, "127.0.0.1", near_port or self.near_port)
        self.near_port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Refuse new lines and cut those that are open."""
        assert self._server is not None
        self._server.close()
        self.cut()
        await self._server.wait_closed()

    def cut(self) -> None:
        """Hang up on both sides of every line; new ones are taken."""
        for end in self._ends:
            end.transport.abort()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(self._host, self.port)
        except OSError:
            writer.transport.abort()
            return
        self.num_lines += 1
        ends = {writer, far_writer}
        self._ends |= ends
        await asyncio.gather(_carry(reader, far_writer), _carry(far_reader, writer))
        self._ends -= ends


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while some := await reader.read(1 << 16):
            writer.write(some)
            await writer.drain()
    except ConnectionError:
        pass  # the line was cut
    finally:
        writer.transport.abort()


def wire_to(kubeconfig: Path) -> Wire:
    """Return a wire to the API server of a kubeconfig, not open yet."""
    url = urlsplit(_cluster(yaml.safe_load(kubeconfig.read_text()))["server"])
    return Wire(url.port or 443, host=url.hostname or "")


def over(wire: Wire, kubeconfig: Path, path: Path) -> Path:
    """Write a kubeconfig that leads over an open wire to the same API server, and return its path."""
    config = yaml.safe_load(kubeconfig.read_text())
    cluster = _cluster(config)
    cluster["tls-server-name"] = urlsplit(cluster["server"]).hostname or ""
    cluster["server"] = f"https://127.0.0.1:{wire.near_port}"
    path.write_text(yaml.safe_dump(config))
    return path


def _cluster(config: dict[str, list[dict[str, dict[str, str]]]]) -> dict[str, str]:
    return config["clusters"][0]["cluster"]
