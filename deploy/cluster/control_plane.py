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
import subprocess
import sys
import time
from pathlib import Path

import httpx

from belvedere_operators.executors.identity import INSTANCE_VARIABLE, find_instance, identity_of
from belvedere_platform.errors import BelvedereError, InvalidInput, Unavailable
from belvedere_platform.ports import free_ports
from instance import LOOK_EVERY_SECONDS, START_TIMEOUT_SECONDS, Instance, ProgramEnded, answers, run_command
from programs import Ports, Program, loopback_url, make_certificates, programs

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
ATTEMPTS = 3


class ControlPlane(Instance):
    """The control plane of one directory. Its processes carry the directory's mark, so they are found again by it alone."""

    marker = "belvedere-control-plane"
    what = "a control plane's"

    def __init__(self, directory: Path, tools: Path) -> None:
        super().__init__(directory)
        self._tools = tools

    @property
    def instance(self) -> str:
        """The mark that every process carries."""
        return "control-plane-" + hashlib.sha256(str(self.directory).encode()).hexdigest()[:16]

    @property
    def url(self) -> str:
        """Where the API server listens."""
        pairs = (line.split() for line in (self.directory / self.marker).read_text().splitlines())
        return loopback_url(Ports(**{name: int(port) for name, port in pairs}))

    def runs(self) -> bool:
        """Return whether its processes are there."""
        return len(find_instance(self.instance)) >= 3

    async def leave(self) -> None:
        """Do nothing: all that it has is in its directory."""

    async def start(self) -> None:
        """Start it in an empty directory."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                await self._start()
            except ProgramEnded:
                # Someone may have taken a port between its choice and its use.
                if attempt == ATTEMPTS:
                    raise
                await self.down()
            else:
                return

    async def _start(self) -> None:
        clients, peers, api, manager = free_ports(4)
        ports = Ports(etcd_clients=clients, etcd_peers=peers, api_server=api, controllers=manager)
        self.claim("".join(f"{name} {port}\n" for name, port in vars(ports).items()))
        certificates = make_certificates(self.directory / "certificates")
        etcd, api_server, controllers = programs(self.directory, ports, certificates)
        async with self.client() as client:
            for program in (etcd, api_server):
                await self._serve(client, program)
            await install_definitions(client, self.url, self._definitions())
            # Only now: the garbage collector looks for new kinds of object twice a minute, and these are all there is.
            await self._serve(client, controllers)
        self.write_kubeconfig(certificates).rename(self.kubeconfig)

    def _definitions(self) -> list[Path]:
        own = sorted((ROOT / "helm" / "belvedere" / "files" / "crds").glob("*.yaml"))
        return own + sorted((self._tools / "definitions").glob("*.yaml"))

    async def _serve(self, client: httpx.AsyncClient, program: Program) -> None:
        process = self._spawn(program)

        async def serving() -> bool:
            if process.poll() is not None:
                raise ProgramEnded(f"{program.name} ended with {process.returncode}:\n{self.last_lines(program.name)}")
            return await answers(client, program.health_url)

        await self.wait(serving, (program.name,), f"{program.name} does not serve")

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


def tools_folder() -> Path:
    """Return where the programs are, built or not."""
    where = subprocess.run([HERE / "build.sh", "--where"], check=True, capture_output=True, text=True)
    return Path(where.stdout.strip())


def built(tools: Path) -> bool:
    """Return whether everything is there that a start needs."""
    needed = ("bin/etcd", "bin/kube-apiserver", "bin/kube-controller-manager", "definitions/modules.txt")
    return all((tools / name).exists() for name in needed)


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
        run_command(options.command, control_plane)
    except BelvedereError as error:
        print(f"control plane: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
