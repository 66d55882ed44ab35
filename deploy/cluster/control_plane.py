"""A Kubernetes control plane on loopback for fast tests: etcd, the API server, garbage collection and namespaces.

    control_plane.py up    start it and print the path of its kubeconfig; one that runs already is left alone
    control_plane.py down  end it and remove its directory, whatever became of the command that started it
    control_plane.py run   start it, print the kubeconfig, and end it when standard input or this process ends
    control_plane.py ready say with the exit code whether the programs have been built

The programs come from `deploy/cluster/build.sh`. Each start begins with an empty store.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
import shutil
import signal
import ssl
import subprocess
import sys
import time
from pathlib import Path
from typing import Protocol

import httpx

from belvedere_operators.executors.identity import INSTANCE_VARIABLE, find_instance, identity_of
from belvedere_platform.errors import BelvedereError, InvalidInput, Unavailable
from processes import end_instance
from programs import (
    Certificates,
    Ports,
    Program,
    free_ports,
    loopback_url,
    make_certificates,
    programs,
    write_kubeconfig,
)

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
MARKER = "belvedere-control-plane"
START_TIMEOUT_SECONDS = 120.0
LOOK_EVERY_SECONDS = 0.1
ATTEMPTS = 3


class ProgramEnded(Unavailable):
    """A program ended before it served."""


class ControlPlane:
    """The control plane of one directory. Its processes carry the directory's mark, so they are found again by it alone."""

    def __init__(self, directory: Path, tools: Path) -> None:
        self.directory = directory.resolve()
        self.kubeconfig = self.directory / "kubeconfig"
        self.instance = "control-plane-" + hashlib.sha256(str(self.directory).encode()).hexdigest()[:16]
        self._tools = tools

    async def up(self) -> None:
        """Start it, unless it runs and answers."""
        if await self._serves():
            return
        for attempt in range(1, ATTEMPTS + 1):
            await self.down()
            try:
                await self._start()
            except ProgramEnded:
                # Someone may have taken a port between its choice and its use.
                if attempt == ATTEMPTS:
                    raise
            else:
                return

    async def down(self) -> None:
        """End every process of this directory and remove the directory. What is stored there is of no use to anyone."""
        await end_instance(self.instance)
        if (self.directory / MARKER).exists():
            shutil.rmtree(self.directory)

    async def _serves(self) -> bool:
        if not self.kubeconfig.exists() or len(find_instance(self.instance)) < 3:
            return False
        ports = Ports(**dict(_read_ports(self.directory / MARKER)))
        context = tls(self.directory / "certificates")
        async with httpx.AsyncClient(verify=context, trust_env=False) as client:
            try:
                answer = await client.get(f"https://127.0.0.1:{ports.api_server}/readyz")
            except httpx.HTTPError:
                return False
        return answer.is_success

    async def _start(self) -> None:
        if self.directory.exists() and any(self.directory.iterdir()):
            raise InvalidInput(f"{self.directory} is neither empty nor a control plane's: choose another --directory")
        ports = free_ports()
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        (self.directory / MARKER).write_text("".join(f"{name} {port}\n" for name, port in vars(ports).items()))
        certificates = make_certificates(self.directory / "certificates")
        etcd, api_server, controllers = programs(self.directory, ports, certificates)
        context = tls(self.directory / "certificates")
        async with httpx.AsyncClient(verify=context, trust_env=False, timeout=30) as client:
            started = self._spawn(etcd)
            await self._wait_serving(client, etcd, started)
            started = self._spawn(api_server)
            await self._wait_serving(client, api_server, started)
            await install_definitions(client, f"https://127.0.0.1:{ports.api_server}", self._definitions())
            # Only now: the garbage collector looks for new kinds of object twice a minute, and these are all there is.
            started = self._spawn(controllers)
            await self._wait_serving(client, controllers, started)
        self._write_kubeconfig(ports, certificates)

    def _write_kubeconfig(self, ports: Ports, certificates: Certificates) -> None:
        # It appears whole or not at all: that it is there says that everything serves.
        part = self.directory / "kubeconfig.part"
        write_kubeconfig(part, certificates.admin, certificates.authority, loopback_url(ports))
        part.rename(self.kubeconfig)

    def _definitions(self) -> list[Path]:
        own = sorted((ROOT / "helm" / "belvedere" / "files" / "crds").glob("*.yaml"))
        return own + sorted((self._tools / "definitions").glob("*.yaml"))

    def _spawn(self, program: Program) -> subprocess.Popen[bytes]:
        logs = self.directory / "logs"
        logs.mkdir(exist_ok=True)
        environment = {**os.environ, INSTANCE_VARIABLE: self.instance}
        with (logs / f"{program.name}.log").open("wb") as log:
            process = subprocess.Popen(
                [str(self._tools / "bin" / program.name), *program.arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                env=environment,
                start_new_session=True,
            )
        identity = identity_of(process.pid)
        with (self.directory / "processes").open("a") as processes:
            processes.write(f"{program.name} {process.pid} {identity.start_ticks if identity else ''}\n")
        return process

    async def _wait_serving(
        self, client: httpx.AsyncClient, program: Program, process: subprocess.Popen[bytes]
    ) -> None:
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while True:
            if process.poll() is not None:
                raise ProgramEnded(f"{program.name} ended with {process.returncode}:\n{self._last_lines(program)}")
            try:
                if (await client.get(program.health_url)).is_success:
                    return
            except httpx.HTTPError:
                pass  # it does not listen yet
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"{program.name} does not serve after {START_TIMEOUT_SECONDS:.0f} s:\n{self._last_lines(program)}"
                )
            await asyncio.sleep(LOOK_EVERY_SECONDS)

    def _last_lines(self, program: Program) -> str:
        text = (self.directory / "logs" / f"{program.name}.log").read_text(errors="replace")
        return "\n".join(text.splitlines()[-15:])


async def install_definitions(client: httpx.AsyncClient, server: str, files: list[Path]) -> None:
    """Apply resource definitions and wait until the API server serves them. Raises InvalidInput for one it refuses."""
    path = f"{server}/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    names = []
    for file in files:
        group, _, plural = file.stem.partition("_")
        names.append(f"{plural}.{group}")
        answer = await client.patch(
            f"{path}/{names[-1]}",
            params={"fieldManager": "belvedere-control-plane", "force": "true"},
            headers={"Content-Type": "application/apply-patch+yaml"},
            content=file.read_bytes(),
        )
        if not answer.is_success:
            raise InvalidInput(f"the API server refuses {file}: {answer.json().get('message', answer.text)}")
    for name in names:
        await _wait_established(client, f"{path}/{name}", name)


async def _wait_established(client: httpx.AsyncClient, url: str, name: str) -> None:
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    conditions: dict[str, dict[str, str]] = {}
    while conditions.get("Established", {}).get("status") != "True":
        if time.monotonic() > deadline:
            raise Unavailable(f"the API server does not serve {name}: {conditions}")
        status = (await client.get(url)).json().get("status", {})
        conditions = {condition["type"]: condition for condition in status.get("conditions", ())}
        if conditions.get("NonStructuralSchema", {}).get("status") == "True":
            raise InvalidInput(f"{name}: {conditions['NonStructuralSchema']['message']}")
        await asyncio.sleep(LOOK_EVERY_SECONDS)


def tls(certificates: Path) -> ssl.SSLContext:
    """Return the administrator's credentials for an API server with these certificates."""
    context = ssl.create_default_context(cafile=str(certificates / "authority.crt"))
    context.load_cert_chain(certificates / "admin.crt", certificates / "admin.key")
    return context


def _read_ports(marker: Path) -> list[tuple[str, int]]:
    pairs = (line.split() for line in marker.read_text().splitlines())
    return [(name, int(port)) for name, port in pairs]


def tools_folder() -> Path:
    """Return where the programs are, built or not."""
    where = subprocess.run([HERE / "build.sh", "--where"], check=True, capture_output=True, text=True)
    return Path(where.stdout.strip())


def built(tools: Path) -> bool:
    """Return whether everything is there that a start needs."""
    needed = ("bin/etcd", "bin/kube-apiserver", "bin/kube-controller-manager", "definitions/modules.txt")
    return all((tools / name).exists() for name in needed)


class Startable(Protocol):
    """What can be started, and ended whatever became of it."""

    kubeconfig: Path

    async def up(self) -> None: ...
    async def down(self) -> None: ...


async def run_until_told(control_plane: Startable) -> None:
    """Start, and end when standard input does: whoever holds its other end need not be alive to end us."""
    loop = asyncio.get_running_loop()
    told = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, told.set)
    loop.add_reader(sys.stdin, lambda: None if os.read(sys.stdin.fileno(), 4096) else told.set())
    starting = asyncio.create_task(control_plane.up())
    waiting = asyncio.create_task(told.wait())
    try:
        await asyncio.wait((starting, waiting), return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            await starting
            print(control_plane.kubeconfig, flush=True)
            await waiting
    finally:
        loop.remove_reader(sys.stdin)
        starting.cancel()
        waiting.cancel()
        await asyncio.gather(starting, waiting, return_exceptions=True)
        await control_plane.down()


def main() -> int:
    """Run one command. Returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("up", "down", "run", "ready"))
    parser.add_argument("--directory", type=Path, default=ROOT / "build" / "control-plane", help="default: %(default)s")
    options = parser.parse_args()
    tools = tools_folder()
    control_plane = ControlPlane(options.directory, tools)
    try:
        if options.command != "down" and not built(tools):
            raise Unavailable("the API server is not built: make control-plane")
        if options.command == "up":
            asyncio.run(control_plane.up())
            print(control_plane.kubeconfig)
        elif options.command == "down":
            asyncio.run(control_plane.down())
        elif options.command == "run":
            asyncio.run(run_until_told(control_plane))
    except BelvedereError as error:
        print(f"control plane: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
