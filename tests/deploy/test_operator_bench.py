"""The operator's benchmark in parts: what is asked for, what stays of an earlier run, and whose processor time it was."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from belvedere_platform.telemetry.benchmark import earlier_rows
from fleet import Needed, while_they_run
from operator_bench import PARTS, parts_of
from shares import Meter, control_plane_programs, cpu_seconds, told


def test_parts_are_named_in_a_list() -> None:
    assert parts_of("services,peer") == {"services", "peer"}
    assert parts_of(",".join(PARTS)) == set(PARTS)
    with pytest.raises(argparse.ArgumentTypeError, match="'pear' is no part; name some of services"):
        parts_of("services,pear")


def test_what_an_earlier_run_left_says_when_it_was_measured(tmp_path: Path) -> None:
    path = tmp_path / "operator.json"
    assert earlier_rows(path) == []
    rows = [{"name": "a", "value": 1.0}, {"name": "b", "value": 2.0, "commit": "older"}]
    path.write_text(json.dumps({"commit": "old", "results": rows}))
    assert [row["commit"] for row in earlier_rows(path)] == ["old", "older"]


def test_processor_time_is_told_by_share() -> None:
    meter = Meter({"this": os.getpid(), "nobody": 2**22})
    began = cpu_seconds(os.getpid())
    while cpu_seconds(os.getpid()) < began + 0.05:
        sum(range(1000))
    used = meter.used()
    assert used["this"] > 0.04
    assert used["nobody"] == 0
    assert told({"operator": 1.0, "API server": 3.0}) == "processor time: API server 3 s (75%), operator 1 s (25%)"
    assert told({"operator": 0.0}) == "processor time: operator 0 s (0%)"


def test_the_programs_of_a_control_plane_are_those_started_last(tmp_path: Path) -> None:
    assert control_plane_programs(tmp_path) == {}
    (tmp_path / "processes").write_text("etcd 1 7\netcd 2 8\nkube-apiserver 3 9\nkube-controller-manager 4 9\n")
    assert control_plane_programs(tmp_path) == {"etcd": 2, "API server": 3, "controller manager": 4}


def program(tmp_path: Path, script: str) -> Needed:
    log = tmp_path / "program.log"
    with log.open("wb") as output:
        process = subprocess.Popen([sys.executable, "-c", script], stdout=output, stderr=output)
    return Needed(name="the simulator", process=process, log=log)


async def test_a_wait_ends_with_the_program_that_it_waits_for(tmp_path: Path) -> None:
    needed = program(tmp_path, "print('no port is free'); raise SystemExit(3)")
    with pytest.raises(RuntimeError, match="the simulator ended with 3:\nno port is free"):
        await while_they_run(asyncio.sleep(600), needed)


async def test_a_wait_that_fails_since_a_program_ended_says_which(tmp_path: Path) -> None:
    needed = program(tmp_path, "print('no port is free')")
    needed.process.wait()

    async def ask() -> None:
        raise ConnectionError("refused")

    with pytest.raises(RuntimeError, match="the simulator ended with 0:\nno port is free"):
        await while_they_run(ask(), needed)


async def test_work_that_is_done_is_done_whatever_ends_then(tmp_path: Path) -> None:
    needed = program(tmp_path, "import time; time.sleep(600)")
    try:
        await while_they_run(asyncio.sleep(0), needed)
        with pytest.raises(ValueError, match="of its own"):
            await while_they_run(fail(), needed)
    finally:
        needed.process.kill()
        needed.process.wait()


async def fail() -> None:
    raise ValueError("of its own")
