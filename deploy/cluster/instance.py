"""What a control plane and a bare node have in common: a directory, a start that happens once, and an end that leaves nothing."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import ssl
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx

from belvedere_platform.errors import InvalidInput, Unavailable
from processes import end_instance
from programs import Certificates, write_kubeconfig

START_TIMEOUT_SECONDS = 300.0
LOOK_EVERY_SECONDS = 0.1
LAST_LINES = 15


class ProgramEnded(Unavailable):
    """A program ended before it served."""


class Instance(ABC):
    """A cluster of one directory, all of which is found again by the directory's path alone."""

    marker: str
    what: str

    def __init__(self, directory: Path) -> None:
        self.directory = directory.resolve()
        self.kubeconfig = self.directory / "kubeconfig"

    @property
    @abstractmethod
    def instance(self) -> str:
        """The mark that every process carries."""

    @property
    @abstractmethod
    def url(self) -> str:
        """Where the API server listens."""

    @abstractmethod
    async def start(self) -> None:
        """Start it in an empty directory."""

    @abstractmethod
    def runs(self) -> bool:
        """Return whether its processes are there."""

    async def up(self) -> None:
        """Start it, unless it runs and answers."""
        if not await self.serves():
            await self.down()
            await self.start()

    async def down(self) -> None:
        """End every process and remove the directory. What is stored there is of no use to anyone."""
        await end_instance(self.instance)
        await self.leave()
        if (self.directory / self.marker).exists():
            # The marker goes last: without it a removal that is cut short could not be taken up again.
            for entry in self.directory.iterdir():
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)
                elif entry.name != self.marker:
                    entry.unlink()
            shutil.rmtree(self.directory)

    @abstractmethod
    async def leave(self) -> None:
        """Take away what it has outside its directory, when its processes are gone."""

    async def serves(self) -> bool:
        """Return whether it runs and its API server answers."""
        if not self.kubeconfig.exists() or not self.runs():
            return False
        async with self.client() as client:
            return await answers(client, f"{self.url}/readyz")

    def client(self) -> httpx.AsyncClient:
        """Return a client with the administrator's credentials."""
        context = tls(self.directory / "certificates")
        return httpx.AsyncClient(verify=context, trust_env=False, timeout=30)

    def claim(self, content: str) -> None:
        """Make the directory this instance's. Raises InvalidInput for one that holds anything else."""
        if self.directory.exists() and any(self.directory.iterdir()):
            raise InvalidInput(f"{self.directory} is neither empty nor {self.what}: choose another --directory")
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        (self.directory / self.marker).write_text(content)

    def write_kubeconfig(self, certificates: Certificates) -> Path:
        """Write the user's kubeconfig where nobody looks for it yet, and return that path."""
        part = self.directory / "kubeconfig.part"
        write_kubeconfig(part, certificates.admin, certificates.authority, self.url)
        return part

    def last_lines(self, name: str) -> str:
        """Return the end of a program's log."""
        text = (self.directory / "logs" / f"{name}.log").read_text(errors="replace")
        return "\n".join(text.splitlines()[-LAST_LINES:])

    async def wait(self, condition: Callable[[], Awaitable[bool]], programs: tuple[str, ...], what: str) -> None:
        """Return when the condition holds. Raises Unavailable with the ends of the programs' logs when it takes too long."""
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while not await condition():
            if time.monotonic() > deadline:
                logs = "\n".join(f"{name}:\n{self.last_lines(name)}" for name in programs)
                raise Unavailable(f"{what} after {START_TIMEOUT_SECONDS:.0f} s:\n{logs}")
            await asyncio.sleep(LOOK_EVERY_SECONDS)


async def answers(client: httpx.AsyncClient, url: str) -> bool:
    """Return whether something listens there and is content."""
    try:
        return (await client.get(url)).is_success
    except httpx.HTTPError:
        return False


def tls(certificates: Path) -> ssl.SSLContext:
    """Return the administrator's credentials for an API server with these certificates."""
    context = ssl.create_default_context(cafile=str(certificates / "authority.crt"))
    context.load_cert_chain(certificates / "admin.crt", certificates / "admin.key")
    return context


async def run_until_told(instance: Instance) -> None:
    """Start, and end when standard input does: whoever holds its other end need not be alive to end us."""
    loop = asyncio.get_running_loop()
    told = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, told.set)
    loop.add_reader(sys.stdin, lambda: None if os.read(sys.stdin.fileno(), 4096) else told.set())
    starting = asyncio.create_task(instance.up())
    waiting = asyncio.create_task(told.wait())
    try:
        await asyncio.wait((starting, waiting), return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            await starting
            print(instance.kubeconfig, flush=True)
            await waiting
    finally:
        loop.remove_reader(sys.stdin)
        starting.cancel()
        waiting.cancel()
        await asyncio.gather(starting, waiting, return_exceptions=True)
        await instance.down()


def run_command(command: str, instance: Instance) -> None:
    """Do what `up`, `down` or `run` asks for."""
    if command == "up":
        asyncio.run(instance.up())
        print(instance.kubeconfig)
    elif command == "down":
        asyncio.run(instance.down())
    elif command == "run":
        asyncio.run(run_until_told(instance))
