"""Say which ports are taken and by whom, from /proc/net, before anything is started."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from belvedere_operators.executors.identity import INSTANCE_VARIABLE, PROC, read_environment

_LISTEN = "0A"


@dataclass(frozen=True, kw_only=True)
class Holder:
    """A process that listens on a port; pid is None when it is another user's and the kernel does not say."""

    pid: int | None
    command: str = ""
    instance: str | None = None

    def __str__(self) -> str:
        """Return pid and command line."""
        return f"process {self.pid} ({self.command[:80]})" if self.pid else "a process of another user"


def listening_inodes(tables: Iterable[str]) -> dict[str, int]:
    """Return the port by socket inode of everything that listens, from the text of /proc/net/tcp and tcp6."""
    found: dict[str, int] = {}
    for table in tables:
        for line in table.splitlines()[1:]:
            fields = line.split()
            if len(fields) > 9 and fields[3] == _LISTEN:
                found[fields[9]] = int(fields[1].rpartition(":")[2], 16)
    return found


def listening_ports() -> set[int]:
    """Return the TCP ports on which someone listens."""
    return set(listening_inodes(_tables()).values())


def holders(ports: Iterable[int]) -> dict[int, Holder]:
    """Return who holds each of these ports; a port that is free is not in the answer."""
    wanted = set(ports)
    inodes = {inode: port for inode, port in listening_inodes(_tables()).items() if port in wanted}
    found = {port: Holder(pid=None) for port in inodes.values()}
    if inodes:
        for pid, inode in _open_sockets():
            if inode in inodes:
                found[inodes[inode]] = describe(pid)
    # Someone may hold a port without listening yet, or in a way that /proc/net does not show.
    return found | {port: Holder(pid=None) for port in wanted - found.keys() if not _can_bind(port)}


def describe(pid: int) -> Holder:
    """Return who a process is."""
    try:
        command = (PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        command = ""
    return Holder(pid=pid, command=command, instance=read_environment(pid, (INSTANCE_VARIABLE,)).get(INSTANCE_VARIABLE))


def conflicts(ports: Mapping[str, int], *, own: Iterable[int]) -> dict[str, Holder]:
    """Return the named ports that someone else holds. `own`: pids of our own processes."""
    ours = set(own)
    taken = holders(ports.values())
    return {name: taken[port] for name, port in ports.items() if port in taken and taken[port].pid not in ours}


def _tables() -> list[str]:
    return [path.read_text() for path in (PROC / "net/tcp", PROC / "net/tcp6") if path.exists()]


def _open_sockets() -> Iterable[tuple[int, str]]:
    for directory in PROC.iterdir():
        if not directory.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            for entry in os.scandir(directory / "fd"):
                with contextlib.suppress(OSError):
                    target = os.readlink(entry.path)
                    if target.startswith("socket:["):
                        yield int(directory.name), target[8:-1]


def _can_bind(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            return error.errno != errno.EADDRINUSE
    return True
