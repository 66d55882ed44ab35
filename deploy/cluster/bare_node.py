"""A Kubernetes of one node without Docker: control plane, containerd, kubelet, network, DNS, storage and the operators.

    bare_node.py up      start it and print the path of its kubeconfig; one that runs already is left alone
    bare_node.py down    end it and remove everything of it, whatever became of it or of the command that started it
    bare_node.py run     start it, print the kubeconfig, and end it when standard input or this process ends
    bare_node.py stop    kill one of its programs and keep it from being started again:  stop kube-apiserver
    bare_node.py start   let a stopped program run again
    bare_node.py ready   say with the exit code whether everything has been built

It needs root, and runs in namespaces of its own (processes, mounts, network, host name, control groups): on the machine
there are only its files, one network interface, one control group in each hierarchy and the processes.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx

import addons
from belvedere_operators.executors.identity import INSTANCE_VARIABLE, Identity, find_instance, identity_of
from belvedere_platform.errors import BelvedereError, InvalidInput, Unavailable
from cgroups import hierarchies
from control_plane import ProgramEnded, run_until_told, tls
from images import shared_folders, with_shared_folders, write_archive
from node_programs import FIRST, REST, Tools, find_tools, make_node_certificates, node_programs
from node_settings import (
    API_SERVER_PORT,
    CONTAINERD_SOCKET,
    KERNEL_SETTINGS,
    NODE,
    SERVICES,
    UPLINK,
    Folders,
    link_of,
    write_settings,
)
from processes import end_instance
from programs import Certificates, write_kubeconfig

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
MARKER = "belvedere-cluster"
START_TIMEOUT_SECONDS = 120.0
LEAVE_TIMEOUT_SECONDS = 20.0
LOOK_EVERY_SECONDS = 0.1
NEEDED_COMMANDS = ("ip", "mount", "unshare", "nsenter")


class BareNode:
    """The node of one directory. All that it has on the machine is found again by the directory's path alone."""

    def __init__(self, directory: Path, tools: Tools) -> None:
        self.directory = directory.resolve()
        self.folders = Folders(directory=self.directory)
        self.kubeconfig = self.directory / "kubeconfig"
        self.name = "belvedere-" + hashlib.sha256(str(self.directory).encode()).hexdigest()[:12]
        self.instance = f"cluster-{self.name}"
        self.link = link_of(self.instance)
        self._tools = tools
        self._url = f"https://{self.link.node_address}:{API_SERVER_PORT}"

    async def up(self) -> None:
        """Start it, unless it runs and answers."""
        if await self._serves():
            return
        _check_machine()
        await self.down()
        await self._start()

    async def down(self) -> None:
        """End every process of the node and remove its control groups, its interface and its directory."""
        await end_instance(self.instance)
        for hierarchy in hierarchies():
            hierarchy.leave(self.name, LEAVE_TIMEOUT_SECONDS)
        await self._wait_unplugged()
        if (self.directory / MARKER).exists():
            # The marker goes last: without it a removal that is cut short could not be taken up again.
            for entry in self.directory.iterdir():
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)
                elif entry.name != MARKER:
                    entry.unlink()
            shutil.rmtree(self.directory)

    def want(self, programs: list[str]) -> None:
        """Say which programs shall run."""
        part = self.directory / "wanted.part"
        part.write_text("\n".join(programs))
        part.rename(self.directory / "wanted")

    def wanted(self) -> list[str]:
        """Return which programs shall run."""
        try:
            return (self.directory / "wanted").read_text().split()
        except FileNotFoundError as error:
            raise InvalidInput(f"no node runs in {self.directory}: start it with  up") from error

    async def _serves(self) -> bool:
        if not self.kubeconfig.exists() or self._leader() not in find_instance(self.instance):
            return False
        async with self._client() as client:
            try:
                return (await client.get(f"{self._url}/readyz")).is_success
            except httpx.HTTPError:
                return False

    def _leader(self) -> Identity | None:
        try:
            pid, start_ticks = (self.directory / "leader").read_text().split()
        except (FileNotFoundError, ValueError):
            return None
        return Identity(pid=int(pid), start_ticks=int(start_ticks))

    def _client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(verify=tls(self.folders.certificates), trust_env=False, timeout=30)

    async def _start(self) -> None:
        if self.directory.exists() and any(self.directory.iterdir()):
            raise InvalidInput(f"{self.directory} is neither empty nor a cluster's: choose another --directory")
        images = addons.images(ROOT, self._tools)
        shared = shared_folders(ROOT)
        for folder in (self.folders.logs, self.folders.config, self.folders.state):
            folder.mkdir(parents=True)
        self.directory.chmod(0o711)
        (self.directory / MARKER).write_text(f"{self.name}\n")
        certificates = make_node_certificates(self.folders, self.link)
        write_settings(self.folders, self.link.node_address, certificates.authority)
        self._write_container(shared)
        (self.folders.config / "plan.json").write_text(json.dumps(self._plan(certificates), indent=1))
        self._spawn()
        await self._plug_in()
        await self._start_programs()
        await asyncio.to_thread(self._import_images, images)
        part = self.directory / "kubeconfig.part"
        write_kubeconfig(part, certificates.admin, certificates.authority, self._url)
        await asyncio.to_thread(addons.install, part, self._tools, self.folders.state / "volumes")
        # It appears whole or not at all: that it is there says that everything serves.
        part.rename(self.kubeconfig)

    def _write_container(self, shared: list[Path]) -> None:
        libraries = ":".join(str(path) for path in (self._tools.packages / "usr/lib").glob("*-linux-gnu"))
        standard = subprocess.run(
            [self._tools.packages / "usr/bin/ctr", "oci", "spec"],
            check=True,
            capture_output=True,
            env={"LD_LIBRARY_PATH": libraries},
        )
        container = with_shared_folders(json.loads(standard.stdout), shared)
        (self.folders.config / "containers.json").write_text(json.dumps(container, indent=1))

    def _plan(self, certificates: Certificates) -> dict[str, Any]:
        settings = self.folders.config / "kernel"
        return {
            "overlays": [
                # Only the node sees the packages that were unpacked for it.
                {"target": "/usr", "lower": [str(self._tools.packages / "usr"), "/usr"]},
                *(self._scratch(name) for name in ("/etc", "/var", "/opt")),
            ],
            "hierarchies": [
                {"target": str(each.target), "type": each.type, "options": each.options} for each in hierarchies()
            ],
            "settings": {target: str(settings / Path(target).name) for target in KERNEL_SETTINGS},
            "network": {
                "interface": UPLINK,
                "address": f"{self.link.node_address}/{self.link.prefix_length}",
                "services": SERVICES,
            },
            "programs": node_programs(self.folders, self.link, self._tools, certificates),
            "environment": {
                "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "HOME": str(self.folders.state),
                INSTANCE_VARIABLE: self.instance,
            },
            "logs": str(self.folders.logs),
            "wanted": str(self.directory / "wanted"),
            "ended": str(self.directory / "ended"),
            "prepared": str(self.directory / "prepared"),
        }

    def _scratch(self, target: str) -> dict[str, Any]:
        """What the node's programs write under a folder of the machine stays in the node's directory."""
        upper, work = (self.folders.state / "overlays" / target[1:] / name for name in ("upper", "work"))
        for folder in (upper, work):
            folder.mkdir(parents=True)
        return {"target": target, "lower": [target], "upper": str(upper), "work": str(work)}

    def _spawn(self) -> None:
        enter = [str(hierarchy.enter(self.name)) for hierarchy in hierarchies()]
        unshare = "unshare --mount --net --uts --ipc --cgroup --pid --fork --kill-child --mount-proc"
        script = f'for file in "$@"; do echo $$ > "$file" || exit; done; exec {unshare} "$PYTHON" "$INIT" "$PLAN"'
        environment = {
            **os.environ,
            INSTANCE_VARIABLE: self.instance,
            "PYTHON": sys.executable,
            "INIT": str(HERE / "node_init.py"),
            "PLAN": str(self.folders.config / "plan.json"),
        }
        with (self.folders.logs / "node.log").open("wb") as log:
            process = subprocess.Popen(
                ["/bin/sh", "-c", script, "sh", *enter],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env=environment,
                start_new_session=True,
            )
        identity = identity_of(process.pid)
        assert identity is not None
        (self.directory / "leader").write_text(f"{identity.pid} {identity.start_ticks}")

    async def _plug_in(self) -> None:
        """Give the node its end of the link, and wait until it has prepared itself."""
        leader = self._leader()
        assert leader is not None
        own = os.readlink("/proc/self/ns/net")
        await self._wait(lambda: os.readlink(f"/proc/{leader.pid}/ns/net") != own, "have a network of its own")
        link, at = self.link, str(leader.pid)
        _run("ip", "link", "add", link.interface, "type", "veth", "peer", "name", UPLINK, "netns", at)
        _run("ip", "address", "add", f"{link.machine_address}/{link.prefix_length}", "dev", link.interface)
        _run("ip", "link", "set", link.interface, "up")
        await self._wait((self.directory / "prepared").exists, "prepare itself")
        for hierarchy in hierarchies():
            hierarchy.settle(self.name)

    async def _start_programs(self) -> None:
        self.want([*FIRST])
        async with self._client() as client:

            async def answers() -> bool:
                try:
                    return (await client.get(f"{self._url}/readyz")).is_success
                except httpx.HTTPError:
                    return False

            await self._wait_for_programs(answers, FIRST)
            self.want([*FIRST, *REST])

            async def node_is_there() -> bool:
                try:
                    return (await client.get(f"{self._url}/api/v1/nodes/{NODE}")).is_success
                except httpx.HTTPError:
                    return False

            await self._wait_for_programs(node_is_there, (*FIRST, *REST))

    async def _wait_for_programs(self, condition: Any, programs: tuple[str, ...]) -> None:
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while not await condition():
            ended = self._ended()
            # One that comes too early ends and is started again; one that does so often never will.
            for name in programs:
                if ended.count(name) > 5:
                    raise ProgramEnded(f"{name} ends again and again:\n{self._last_lines(name)}")
            if time.monotonic() > deadline:
                logs = "\n".join(f"{name}:\n{self._last_lines(name)}" for name in programs)
                raise Unavailable(f"the node does not serve after {START_TIMEOUT_SECONDS:.0f} s:\n{logs}")
            await asyncio.sleep(LOOK_EVERY_SECONDS)

    def _ended(self) -> list[str]:
        try:
            return [line.split()[0] for line in (self.directory / "ended").read_text().splitlines()]
        except FileNotFoundError:
            return []

    async def _wait(self, condition: Any, what: str) -> None:
        leader = self._leader()
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while True:
            if leader is None or not leader.alive():
                raise ProgramEnded(f"the node ended before it could {what}:\n{self._last_lines('node')}")
            if condition():
                return
            if time.monotonic() > deadline:
                raise Unavailable(f"the node did not {what} in {START_TIMEOUT_SECONDS:.0f} s")
            await asyncio.sleep(LOOK_EVERY_SECONDS)

    def _last_lines(self, name: str) -> str:
        text = (self.folders.logs / f"{name}.log").read_text(errors="replace")
        return "\n".join(text.splitlines()[-15:])

    def _import_images(self, images: list[Any]) -> None:
        archive = self.folders.state / "images.tar"
        write_archive(archive, images)
        leader = self._leader()
        assert leader is not None
        inside = ["nsenter", "--target", str(leader.pid), "--mount", "--net", "--"]
        client = ["/usr/bin/ctr", "--address", CONTAINERD_SOCKET, "--namespace", "k8s.io"]
        _run(*inside, *client, "images", "import", str(archive))
        archive.unlink()

    async def _wait_unplugged(self) -> None:
        """The kernel takes the interface away with the node's network, a moment after its last process."""
        deadline = time.monotonic() + LEAVE_TIMEOUT_SECONDS
        while _plugged(self.link.interface):
            if time.monotonic() > deadline:
                _run("ip", "link", "delete", self.link.interface)
                return
            await asyncio.sleep(LOOK_EVERY_SECONDS)


def _plugged(interface: str) -> bool:
    return Path("/sys/class/net", interface).exists()


def _run(*command: str) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise Unavailable(f"{' '.join(command)} failed with {done.returncode}: {done.stderr.strip()}")


def _check_machine() -> None:
    if os.geteuid() != 0:
        raise InvalidInput("a node without Docker needs root: use  sudo -E make cluster-up, or start Docker for kind")
    for command in NEEDED_COMMANDS:
        if shutil.which(command) is None:
            raise InvalidInput(f"{command} is needed: install iproute2 and util-linux")


def built() -> bool:
    """Return whether everything is there that a start needs."""
    return subprocess.run([HERE / "build_node.sh", "--ready"]).returncode == 0


def main() -> int:
    """Run one command. Returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("up", "down", "run", "stop", "start", "ready"))
    parser.add_argument("program", nargs="?", choices=(*FIRST, *REST), help="for stop and start")
    parser.add_argument("--directory", type=Path, default=ROOT / "build" / "cluster", help="default: %(default)s")
    options = parser.parse_args()
    node = BareNode(options.directory, find_tools())
    try:
        if options.command in ("up", "run", "ready") and not built():
            raise Unavailable("the node is not built: make cluster-up")
        if options.command == "up":
            asyncio.run(node.up())
            print(node.kubeconfig)
        elif options.command == "down":
            asyncio.run(node.down())
        elif options.command == "run":
            asyncio.run(run_until_told(node))
        elif options.command in ("stop", "start"):
            _stop_or_start(node, options.command, options.program)
    except BelvedereError as error:
        print(f"cluster: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _stop_or_start(node: BareNode, command: str, program: str | None) -> None:
    if program is None:
        raise InvalidInput(f"{command} needs a program: one of {', '.join((*FIRST, *REST))}")
    others = [each for each in node.wanted() if each != program]
    node.want(others if command == "stop" else [*others, program])


if __name__ == "__main__":
    sys.exit(main())
