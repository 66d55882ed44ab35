"""The logs of processes that run on stay within a size, and the processes notice nothing."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from belvedere_operators.executors import log_limit
from belvedere_operators.executors.log_limit import LogLimit, turn_over
from belvedere_operators.executors.process import Command, Exited, Slot, older_log, open_log
from belvedere_operators.runtime import SystemClock
from belvedere_platform.errors import Unavailable

INSTANCE = f"test-{os.getpid()}"


@pytest.fixture
def log_path(tmp_path: Path) -> Path:
    return tmp_path / "logs/default/deployment/ray/0-ray.log"


def test_a_process_that_runs_on_writes_to_the_start_of_its_log(log_path: Path) -> None:
    descriptor = open_log(log_path)
    with subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE, stdout=descriptor) as writer:
        os.close(descriptor)
        assert writer.stdin is not None
        writer.stdin.write(b"early\n" * 100)
        writer.stdin.flush()
        while log_path.stat().st_size < 600:
            assert writer.poll() is None

        assert turn_over(log_path, limit=500)
        assert log_path.stat().st_size == 0
        writer.stdin.write(b"late\n")

    assert log_path.read_bytes() == b"late\n"
    older = log_path.with_name("0-ray.1.log")
    assert older.read_bytes() == b"early\n" * 100
    assert older.stat().st_mode & 0o077 == 0
    assert len(list(log_path.parent.iterdir())) == 2


def test_one_older_file_is_kept_and_a_small_log_is_left(log_path: Path) -> None:
    os.close(open_log(log_path))
    for content in (b"first\n", b"second\n"):
        log_path.write_bytes(content)
        assert turn_over(log_path, limit=5)
    log_path.write_bytes(b"now\n")

    assert not turn_over(log_path, limit=5)
    assert log_path.read_bytes() == b"now\n"
    assert log_path.with_name("0-ray.1.log").read_bytes() == b"second\n"


def test_of_a_log_that_grew_much_in_between_the_end_is_kept(log_path: Path) -> None:
    os.close(open_log(log_path))
    log_path.write_bytes(b"0123456789" * 1000 + b"end\n")
    assert turn_over(log_path, limit=6)
    assert log_path.with_name("0-ray.1.log").read_bytes() == b"89end\n"


def test_what_is_written_meanwhile_is_kept(log_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.close(open_log(log_path))
    log_path.write_bytes(b"long before\n")
    replace = Path.replace

    def replace_late(path: Path, target: Path) -> Path:
        with log_path.open("ab") as writer:
            writer.write(b"meanwhile\n")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", replace_late)
    assert turn_over(log_path, limit=11)
    assert log_path.with_name("0-ray.1.log").read_bytes() == b"long before\nmeanwhile\n"


def test_a_log_is_bounded_on_a_full_disk_too(log_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.close(open_log(log_path))
    log_path.write_bytes(b"too much\n")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(log_limit, "_copy", full)
    assert turn_over(log_path, limit=5)
    assert [path.name for path in log_path.parent.iterdir()] == [log_path.name]
    assert log_path.stat().st_size == 0


class OneLook(SystemClock):
    """Ends the loop where it would wait."""

    async def sleep(self, seconds: float) -> None:
        assert seconds == log_limit.LOOK_SECONDS
        raise asyncio.CancelledError


async def look(home: Path) -> None:
    with pytest.raises(asyncio.CancelledError):
        await LogLimit(home=home, instance=INSTANCE, clock=OneLook(), limit=5).run()


def has_ended(slot: Slot) -> bool:
    try:
        return isinstance(slot.observe(), Exited)
    except Unavailable:
        return False


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Callable[..., Awaitable[Path]]]:
    slots = []

    async def started(name: str, script: str) -> Path:
        log = tmp_path / "logs" / f"{name}.log"
        slot = Slot(tmp_path / "processes" / name, instance=INSTANCE)
        slots.append(slot)
        environment = {"PATH": os.environ["PATH"], "BELVEDERE_INSTANCE": INSTANCE}
        words = ("sh", "-c", f"echo too much; {script}")
        slot.start(Command(arguments=words, environment=environment, directory=tmp_path, log=log), now=0)
        async with asyncio.timeout(90):
            while len(log.read_bytes()) < 9:  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.01)
        return log

    yield started
    for slot in slots:
        await slot.stop(grace_seconds=0)


async def test_what_runs_is_looked_at_and_the_last_words_of_what_ended_stay(
    tmp_path: Path, start: Callable[..., Awaitable[Path]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    (tmp_path / "processes" / "empty").mkdir(parents=True)
    ended = await start("ended", "exit 3")
    async with asyncio.timeout(90):
        while not has_ended(Slot(tmp_path / "processes" / "ended", instance=INSTANCE)):  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.01)
    runs = await start("runs", "exec sleep 600")

    await look(tmp_path)
    await look(tmp_path)

    assert (runs.read_bytes(), older_log(runs).read_bytes()) == (b"", b"too much\n")
    assert ended.read_bytes() == b"too much\n"
    said = [record.getMessage() for record in caplog.records if record.name == log_limit.__name__]
    assert said == [f"turned over {runs}"]


async def test_a_log_that_cannot_be_turned_over_stops_nothing(
    tmp_path: Path, start: Callable[..., Awaitable[Path]], caplog: pytest.LogCaptureFixture
) -> None:
    stuck, other = await start("stuck", "exec sleep 600"), await start("other", "exec sleep 600")
    older_log(stuck).mkdir()

    await look(tmp_path)

    assert (stuck.read_bytes(), other.read_bytes()) == (b"too much\n", b"")
    assert "the log of stuck is not turned over" in caplog.text
