"""A Kubernetes of one node without Docker: control plane, containerd, kubelet, network, DNS, storage and the operators.

    bare_node.py up      start it and print the path of its kubeconfig; one that runs already is left alone
    bare_node.py down    end it and remove everything of it, whatever became of it or of the command that started it
    bare_node.py run     start it, print the kubeconfig, and end it when standard input or this process ends
    bare_node.py stop    kill one of its programs and keep it from being started again:  stop kube-apiserver
    bare_node.py start   let a stopped program run again
    bare_node.py ready   say with the exit code whether everything has been built
    bare_node.py able    say with the exit code whether this machine can run one, and if not, why

It needs root, and runs in namespaces of its own (processes, mounts, network, host name, control groups): on the machine
there are only its files, one network interface, one control group in each hierarchy and the processes.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import httpx

import addons
from belvedere_operators.executors.identity import INSTANCE_VARIABLE, Identity, find_instance, identity_of
from belvedere_platform.errors import BelvedereError, InvalidInput, Unavailable
from cgroups import hierarchies
from images import shared_folders, with_shared_folders, write_archive
from instance import LOOK_EVERY_SECONDS, START_TIMEOUT_SECONDS, Instance, ProgramEnded, answers, run_command
from machine import check_machine
from node_programs import (
    FIRST,
    KUBE_ROUTER_HEALTH_PORT,
    LAST,
    REST,
    Tools,
    find_tools,
    make_node_certificates,
    node_programs,
)
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
from programs import Certificates

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
LEAVE_TIMEOUT_SECONDS = 20.0


class BareNode(Instance):
    """The node of one directory. All that it has on the machine is found again by the directory's path alone."""

    marker = "belvedere-cluster"
    what = "a cluster's"

    def __init__(self, directory: Path, tools: Tools) -> None:
        super().__init__(directory)
        self.folders = Folders(directory=self.directory)
        self.name = "belvedere-" + hashlib.sha256(str(self.directory).encode()).hexdigest()[:12]
        self.link = link_of(self.instance)
        self._tools = tools

    @property
    def instance(self) -> str:
        """The mark that every process carries."""
        return f"cluster-{self.name}"

    @property
    def url(self) -> str:
        """Where the API server listens."""
        return f"https://{self.link.node_address}:{API_SERVER_PORT}"

    def runs(self) -> bool:
        """Return whether its processes are there."""
        return self._leader() in find_instance(self.instance)

    async def leave(self) -> None:
        """Remove its control groups and its interface."""
        for hierarchy in hierarchies():
            hierarchy.leave(self.name, LEAVE_TIMEOUT_SECONDS)
        await self._wait_unplugged()

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

    def _leader(self) -> Identity | None:
        try:
            pid, start_ticks = (self.directory / "leader").read_text().split()
        except (FileNotFoundError, ValueError):
            return None
        return Identity(pid=int(pid), start_ticks=int(start_ticks))

    async def start(self) -> None:
        """Start it in an empty directory."""
        check_machine()
        images = addons.images(ROOT, self._tools)
        shared = shared_folders(ROOT, addons.triton())
        self.claim(f"{self.name}\n")
        self.directory.chmod(0o711)
        for folder in (self.folders.logs, self.folders.config, self.folders.state):
            folder.mkdir()
        certificates = make_node_certificates(self.folders, self.link)
        write_settings(self.folders, self.link.node_address, certificates.authority)
        self._write_container(shared)
        (self.folders.config / "plan.json").write_text(json.dumps(self._plan(certificates), indent=1))
        self._spawn()
        await self._plug_in()
        await self._start_programs()
        await asyncio.to_thread(self._import_images, images)
        part = self.write_kubeconfig(certificates)
        await asyncio.to_thread(addons.install, part, self._tools, self.folders.state / "volumes")
        await self._enforce_policies()
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
        await self._wait_prepared(lambda: os.readlink(f"/proc/{leader.pid}/ns/net") != own, "have a network of its own")
        link, at = self.link, str(leader.pid)
        _run("ip", "link", "add", link.interface, "type", "veth", "peer", "name", UPLINK, "netns", at)
        _run("ip", "address", "add", f"{link.machine_address}/{link.prefix_length}", "dev", link.interface)
        _run("ip", "link", "set", link.interface, "up")
        await self._wait_prepared((self.directory / "prepared").exists, "prepare itself")
        for hierarchy in hierarchies():
            hierarchy.settle(self.name)

    async def _start_programs(self) -> None:
        async with self.client() as client:
            for programs, url in ((FIRST, "/readyz"), ((*FIRST, *REST), f"/api/v1/nodes/{NODE}")):
                self.want([*programs])
                await self.wait(partial(self._serving, client, programs, url), programs, "the node does not serve")

    async def _enforce_policies(self) -> None:
        """Return when network policies are enforced."""
        self.want([*FIRST, *REST, *LAST])
        health = f"http://{self.link.node_address}:{KUBE_ROUTER_HEALTH_PORT}/healthz"
        async with httpx.AsyncClient(trust_env=False) as client:
            await self.wait(partial(answers, client, health), LAST, "network policies are not enforced")

    async def _serving(self, client: httpx.AsyncClient, programs: tuple[str, ...], path: str) -> bool:
        ended = self._ended()
        # One that comes too early ends and is started again; one that does so often never will.
        for name in programs:
            if ended.count(name) > 5:
                raise ProgramEnded(f"{name} ends again and again:\n{self.last_lines(name)}")
        return await answers(client, f"{self.url}{path}")

    def _ended(self) -> list[str]:
        try:
            return [line.split()[0] for line in (self.directory / "ended").read_text().splitlines()]
        except FileNotFoundError:
            return []

    async def _wait_prepared(self, condition: Any, what: str) -> None:
        leader = self._leader()
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while True:
            if leader is None or not leader.alive():
                raise ProgramEnded(f"the node ended before it could {what}:\n{self.last_lines('node')}")
            if condition():
                return
            if time.monotonic() > deadline:
                raise Unavailable(f"the node did not {what} in {START_TIMEOUT_SECONDS:.0f} s")
            await asyncio.sleep(LOOK_EVERY_SECONDS)

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


def built() -> bool:
    """Return whether everything is there that a start needs."""
    return subprocess.run([HERE / "build_node.sh", "--ready"]).returncode == 0


def main() -> int:
    """Run one command. Returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("up", "down", "run", "stop", "start", "ready", "able"))
    parser.add_argument("program", nargs="?", choices=(*FIRST, *REST, *LAST), help="for stop and start")
    parser.add_argument("--directory", type=Path, default=ROOT / "build" / "cluster", help="default: %(default)s")
    options = parser.parse_args()
    node = BareNode(options.directory, find_tools())
    try:
        if options.command in ("up", "run", "ready") and not built():
            raise Unavailable("the node is not built: make cluster-up")
        if options.command == "able":
            check_machine()
        elif options.command in ("stop", "start"):
            _stop_or_start(node, options.command, options.program)
        else:
            run_command(options.command, node)
    except BelvedereError as error:
        print(f"cluster: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _stop_or_start(node: BareNode, command: str, program: str | None) -> None:
    if program is None:
        raise InvalidInput(f"{command} needs a program: one of {', '.join((*FIRST, *REST, *LAST))}")
    others = [each for each in node.wanted() if each != program]
    node.want(others if command == "stop" else [*others, program])


if __name__ == "__main__":
    sys.exit(main())
