"""A slot runs one process, adopts it, knows how it ended and leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from belvedere_operators.executors.identity import Entry, Identity, find_members, identity_of, select_members, wait_gone
from belvedere_operators.executors.process import Command, Empty, Exited, Running, Slot
from belvedere_platform.errors import InvalidInput, Unavailable

INSTANCE = f"test-{os.getpid()}"
PATIENCE_SECONDS = 90
"""What a real process may take on a busy machine."""


@pytest.fixture
async def slot(tmp_path: Path) -> AsyncIterator[Slot]:
    slot = Slot(tmp_path / "slots" / tmp_path.name, instance=INSTANCE)
    yield slot
    await slot.stop(grace_seconds=0)


def command(tmp_path: Path, *arguments: str, **fields: str) -> Command:
    return Command(
        arguments=arguments,
        environment={"PATH": os.environ["PATH"], "BELVEDERE_INSTANCE": INSTANCE},
        directory=tmp_path,
        log=tmp_path / "logs" / "it.log",
        **fields,
    )


async def ended(slot: Slot) -> Exited:
    """Wait for the end, looking again as a controller does when the slot is between two states."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            try:
                observation = slot.observe()
            except Unavailable:
                await asyncio.sleep(0.01)
                continue
            if isinstance(observation, Exited):
                return observation
            assert isinstance(observation, Running)
            await wait_gone(observation.identity)


def line_of(path: Path, timeout_seconds: float = PATIENCE_SECONDS) -> str:
    """Wait for the first whole line of a file."""
    deadline = time.monotonic() + timeout_seconds
    while time.monotonic() < deadline:
        if path.exists() and path.read_text().endswith("\n"):
            return path.read_text()
        time.sleep(0.01)
    raise AssertionError(f"nothing was written to {path}")


async def test_nothing_was_started(slot: Slot) -> None:
    assert slot.observe() == Empty()


@pytest.mark.parametrize(("script", "code"), [("exit 0", 0), ("exit 7", 7), ("kill -KILL $$", 137)])
async def test_exit_code_is_observed(slot: Slot, tmp_path: Path, script: str, code: int) -> None:
    slot.start(command(tmp_path, "sh", "-c", script, fingerprint="a"), now=5.0)
    exited = await ended(slot)
    assert (exited.code, exited.attempt.fingerprint, exited.attempt.started_at) == (code, "a", 5.0)


async def test_output_goes_to_the_log_and_input_is_empty(slot: Slot, tmp_path: Path) -> None:
    slot.start(command(tmp_path, "sh", "-c", "echo out; echo err >&2; cat; pwd"), now=0)
    await ended(slot)
    assert (tmp_path / "logs/it.log").read_text() == f"out\nerr\n{tmp_path}\n"


async def test_second_start_adopts_the_first(slot: Slot, tmp_path: Path) -> None:
    first = slot.start(command(tmp_path, "sleep", "60", fingerprint="a"), now=0)
    other = Slot(slot.directory, instance=INSTANCE)
    second = other.start(command(tmp_path, "sleep", "61", fingerprint="b"), now=1)
    assert second == first
    assert isinstance(first, Running)


async def test_attempts_are_counted_per_owner(slot: Slot, tmp_path: Path) -> None:
    numbers = []
    for owner in ("u1", "u1", "u2"):
        slot.start(command(tmp_path, "true", owner=owner), now=0)
        numbers.append((await ended(slot)).attempt.number)
    assert numbers == [1, 2, 1]


async def test_start_survives_its_starter_being_killed(slot: Slot, tmp_path: Path) -> None:
    """A control plane is killed while the command runs; who comes back sees it run, and then how it ended."""
    program = (
        "import os, signal, sys; from pathlib import Path\n"
        "from belvedere_operators.executors.process import Command, Slot\n"
        f"slot = Slot(Path({str(slot.directory)!r}), instance={INSTANCE!r})\n"
        "env = {'PATH': os.environ['PATH']}\n"
        f"go = 'while [ ! -e {tmp_path}/go ]; do sleep 0.02; done; exit 9'\n"
        f"slot.start(Command(arguments=('sh', '-c', go), environment=env, directory=Path({str(tmp_path)!r}), "
        f"log=Path({str(tmp_path / 'log')!r})), now=0)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", program], check=False)
    assert done.returncode == -signal.SIGKILL
    observation = slot.observe()
    assert isinstance(observation, Running)
    assert slot.start(command(tmp_path, "true"), now=1) == observation
    (tmp_path / "go").touch()
    assert (await ended(slot)).code == 9


async def test_stop_lets_the_command_end_in_its_own_way(slot: Slot, tmp_path: Path) -> None:
    script = f"trap 'echo bye; exit 3' TERM; echo up > {tmp_path}/up; while :; do sleep 0.05; done"
    slot.start(command(tmp_path, "sh", "-c", script), now=0)
    line_of(tmp_path / "up")
    await slot.stop(grace_seconds=PATIENCE_SECONDS)
    assert (await ended(slot)).code == 3
    assert "bye" in (tmp_path / "logs/it.log").read_text()


async def test_stop_kills_what_ignores_sigterm(slot: Slot, tmp_path: Path) -> None:
    slot.start(
        command(tmp_path, "sh", "-c", f"trap '' TERM; echo up > {tmp_path}/up; while :; do sleep 1; done"), now=0
    )
    line_of(tmp_path / "up")
    await slot.stop(grace_seconds=0.1)
    assert (await ended(slot)).code == 137


async def test_stop_finds_a_descendant_that_left_the_group(slot: Slot, tmp_path: Path) -> None:
    script = f"setsid sh -c 'echo $$ > {tmp_path}/pid; exec sleep 300' & wait"
    slot.start(command(tmp_path, "sh", "-c", script), now=0)
    daemon = identity_of(int(line_of(tmp_path / "pid")))
    assert daemon is not None
    await slot.stop(grace_seconds=5)
    assert not daemon.alive()
    assert find_members(slot.mark, None) == set()


async def test_stop_of_a_starter_leaves_what_it_started_in_other_slots(slot: Slot, tmp_path: Path) -> None:
    inner = Slot(tmp_path / "slots" / "inner", instance=INSTANCE)
    program = (
        "import os, time; from pathlib import Path\n"
        "from belvedere_operators.executors.process import Command, Slot\n"
        f"slot = Slot(Path({str(inner.directory)!r}), instance={INSTANCE!r})\n"
        f"slot.start(Command(arguments=('sleep', '300'), environment=dict(os.environ), directory=Path('/'), "
        f"log=Path({str(tmp_path / 'log')!r})), now=0)\n"
        f"print('up', file=open({str(tmp_path / 'up')!r}, 'w')); time.sleep(300)\n"
    )
    slot.start(command(tmp_path, sys.executable, "-c", program), now=0)
    try:
        line_of(tmp_path / "up")
        await slot.stop(grace_seconds=5)
        assert isinstance(inner.observe(), Running)
    finally:
        await inner.stop(grace_seconds=0)


async def test_killed_supervisor_is_an_exit_nobody_knows(slot: Slot, tmp_path: Path) -> None:
    running = slot.start(command(tmp_path, "sh", "-c", f"echo up > {tmp_path}/up; exec sleep 300"), now=0)
    assert isinstance(running, Running)
    line_of(tmp_path / "up")
    running.identity.send(signal.SIGKILL)
    assert (await ended(slot)).code is None
    assert find_members(slot.mark, None) != set()
    await slot.sweep()
    assert find_members(slot.mark, None) == set()


async def test_hangup_reaches_the_command(slot: Slot, tmp_path: Path) -> None:
    script = f"trap 'echo again > {tmp_path}/again' HUP; echo up > {tmp_path}/up; while :; do sleep 0.05; done"
    slot.start(command(tmp_path, "sh", "-c", script), now=0)
    line_of(tmp_path / "up")
    assert slot.send(signal.SIGHUP)
    assert line_of(tmp_path / "again") == "again\n"
    assert isinstance(slot.observe(), Running)


async def test_unknown_command_is_named(slot: Slot, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"command\[0\] is 'no-such-thing'.*PATH"):
        slot.start(command(tmp_path, "no-such-thing"), now=0)
    assert slot.observe() == Empty()


async def test_missing_directory_is_named(slot: Slot, tmp_path: Path) -> None:
    wrong = Command(arguments=("true",), environment={}, directory=tmp_path / "gone", log=tmp_path / "log")
    with pytest.raises(Unavailable, match=r"could not be started in .*gone"):
        slot.start(wrong, now=0)


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small tmpfs")
    point = tmp_path / "small"
    point.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(point)], check=False)
    if mounted.returncode != 0:
        pytest.skip("mounting is not allowed here")
    (point / "slot").mkdir()
    (point / "slot/lock").touch()
    with (point / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            pass
    yield point
    subprocess.run(["umount", "-l", str(point)], check=True)


async def test_full_disk_starts_nothing_and_says_so(full_disk: Path, tmp_path: Path) -> None:
    slot = Slot(full_disk / "slot", instance=INSTANCE)
    with pytest.raises(Exception, match="no space is left for") as caught:
        slot.start(command(tmp_path, "sleep", "300"), now=0)
    assert getattr(caught.value, "exit_code", None) == 7
    assert slot.observe() == Empty()
    assert find_members(slot.mark, None) == set()


def entry(pid: int, parent: int, session: int) -> Entry:
    return Entry(identity=Identity(pid=pid, start_ticks=pid), state="S", parent=parent, group=session, session=session)


def test_members_are_found_by_mark_session_and_descent() -> None:
    entries = {
        e.identity.pid: e
        for e in (
            entry(10, 1, 10),
            entry(11, 10, 10),
            entry(12, 11, 12),
            entry(13, 12, 13),
            entry(20, 11, 20),
            entry(30, 1, 30),
        )
    }
    marks = {10: "a", 11: "a", 12: None, 13: None, 20: "b", 30: None}
    leader = entries[10].identity
    assert {i.pid for i in select_members(entries, marks, mark="a", leader=leader)} == {10, 11, 12, 13}
    stranger = Identity(pid=30, start_ticks=7)
    assert select_members(entries, marks, mark="c", leader=stranger) == set()
