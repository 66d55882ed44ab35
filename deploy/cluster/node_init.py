"""The first process of a bare node's namespaces: makes its view of the machine, then keeps its programs running.

    node_init.py PLAN

It is started by bare_node.py under `unshare`, as process 1 of a process namespace, with mounts, network, host name and
control groups of its own. Whatever happens to it ends the whole node, and all it mounted and configured goes with it:
nothing has to be undone on the machine but the control groups and the files, which bare_node.py removes.

The file WANTED names the programs that shall run, a line each; one that ends is started again, one that is no longer
named is killed. The file ENDED gets a line for each program that ended by itself.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LOOK_EVERY_SECONDS = 0.1
RESTART_AFTER_SECONDS = 1.0
UPLINK_WITHIN_SECONDS = 20.0


def run(*command: str) -> None:
    """Run a command to its end. Raises CalledProcessError when it fails."""
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


def make_view(plan: dict[str, Any]) -> None:
    """Mount what the node sees in place of the machine's: its own /run, control groups, settings of the kernel, tools."""
    # The kubelet wants mounts to spread to its containers; nothing spreads to the machine, as unshare cut that.
    run("mount", "--make-rshared", "/")
    run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run")
    for overlay in plan["overlays"]:
        options = [f"lowerdir={':'.join(overlay['lower'])}"]
        if "upper" in overlay:
            options += [f"upperdir={overlay['upper']}", f"workdir={overlay['work']}"]
        run("mount", "-t", "overlay", "-o", ",".join(options), "overlay", overlay["target"])
    run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/sys/fs/cgroup")
    for hierarchy in plan["hierarchies"]:
        Path(hierarchy["target"]).mkdir(parents=True, exist_ok=True)
        run("mount", "-t", hierarchy["type"], "-o", hierarchy["options"], "cgroup", hierarchy["target"])
    # The kubelet sets these for the whole machine unless they are as it wants: it is shown that they are.
    for target, file in plan["settings"].items():
        if Path(target).exists():
            run("mount", "--bind", file, target)


def configure_network(network: dict[str, str]) -> None:
    """Wait for the link to the machine, and route services to it; there is no way to any other network."""
    run("ip", "link", "set", "lo", "up")
    interface = network["interface"]
    deadline = time.monotonic() + UPLINK_WITHIN_SECONDS
    while not Path("/proc/sys/net/ipv4/conf", interface).exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"nobody gave the node its interface {interface}")
        time.sleep(LOOK_EVERY_SECONDS)
    run("ip", "address", "add", network["address"], "dev", interface)
    run("ip", "link", "set", interface, "up")
    # An address of a service must have a route, or connecting fails before kube-proxy's rules can send it to a pod.
    run("ip", "route", "add", network["services"], "dev", interface)
    # Failing at once beats waiting for an answer that can't come.
    run("ip", "route", "add", "unreachable", "default")


@dataclass
class Running:
    """The programs that were started, and when each may be started again."""

    plan: dict[str, Any]
    pids: dict[int, str] = field(default_factory=dict)
    not_before: dict[str, float] = field(default_factory=dict)

    def look(self) -> None:
        """Reap what ended, end what is not wanted, start what is."""
        wanted = self._wanted()
        self._reap(wanted)
        for pid, name in self.pids.items():
            if name not in wanted:
                os.kill(pid, signal.SIGKILL)
        for name in wanted:
            if name not in self.pids.values() and time.monotonic() >= self.not_before.get(name, 0.0):
                self._start(name)

    def _wanted(self) -> list[str]:
        try:
            return Path(self.plan["wanted"]).read_text().split()
        except FileNotFoundError:
            return []

    def _reap(self, wanted: list[str]) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            name = self.pids.pop(pid, None)
            if name is None:
                continue  # an orphan of a container
            self.not_before[name] = time.monotonic() + RESTART_AFTER_SECONDS
            if name in wanted:
                self._write_ended(name, os.waitstatus_to_exitcode(status))

    def _write_ended(self, name: str, code: int) -> None:
        with Path(self.plan["ended"]).open("a") as ended:
            ended.write(f"{name} {code}\n")

    def _start(self, name: str) -> None:
        with Path(self.plan["logs"], f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                self.plan["programs"][name],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.plan["environment"],
                start_new_session=True,
            )
        # From here on the loop reaps it, like every other process of the namespace.
        process.returncode = 0
        self.pids[process.pid] = name


def main() -> None:
    """Make the view, then look after the programs until killed."""
    plan: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    os.environ["PATH"] = plan["environment"]["PATH"]
    make_view(plan)
    configure_network(plan["network"])
    Path(plan["prepared"]).touch()
    running = Running(plan)
    while True:
        running.look()
        time.sleep(LOOK_EVERY_SECONDS)


if __name__ == "__main__":
    main()
