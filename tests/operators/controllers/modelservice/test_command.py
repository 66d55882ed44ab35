"""`belvedere rollout`, on the same store as a running controller."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass

import pytest

from belvedere_platform.cli.main import cli
from belvedere_platform.store.kinds import CONFIG_MAP


@dataclass(frozen=True)
class Ran:
    """What a command said."""

    code: int
    out: str
    err: str


@pytest.fixture
def belvedere(serving, capsys):
    """Run a command in a thread of its own while the world goes on."""

    def call(arguments: tuple[str, ...]) -> int:
        try:
            cli.main(["--store", f"sqlite:///{serving.store.path}", *arguments], prog_name="belvedere")
        except SystemExit as ended:
            return int(ended.code or 0)
        raise AssertionError("a command ends by SystemExit")

    async def run(*arguments: str) -> Ran:
        capsys.readouterr()
        task = asyncio.create_task(asyncio.to_thread(call, arguments))
        while not task.done():
            await serving.tick()
            await asyncio.wait([task], timeout=0.02)
        said = capsys.readouterr()
        return Ran(task.result(), said.out, said.err)

    return run


@pytest.fixture
async def rolling(serving):
    await serving.add_version("v2")
    await serving.ask("v2", rollout={"steps": [{"weight": 10, "holdSeconds": 100000}], "deadlineSeconds": 1000000})
    await serving.run(8)
    return serving


async def test_status_shows_both_sides_and_the_evidence(belvedere, rolling):
    ran = await belvedere("rollout", "status", "search")
    assert ran.code == 0
    assert "rollout of v2 progressing, step 1 of 1" in ran.out
    assert "evidence  errors harm" in ran.out
    assert "stable     v1" in ran.out
    assert "SetWeight" in ran.out


async def test_status_for_programs_is_one_object(belvedere, rolling):
    ran = await belvedere("rollout", "status", "search", "--output", "json")
    facts = json.loads(ran.out)
    assert facts["candidate"]["desiredWeight"] == 10
    assert set(facts["evidence"]["harm"]) == {"errors", "latency"}


async def test_abort_takes_the_traffic_away_and_says_so(belvedere, rolling):
    ran = await belvedere("rollout", "abort", "search")
    assert (ran.code, ran.out) == (0, "v2 is aborted; v1 serves\n")
    assert await rolling.weights() == {"v1": 100}


async def test_promote_does_not_wait_for_proof(belvedere, rolling):
    ran = await belvedere("rollout", "promote", "search")
    assert (ran.code, ran.out) == (0, "v2 is promoted; v2 serves\n")
    assert await rolling.weights() == {"v2": 100}


async def test_watching_ends_with_6_when_the_candidate_is_aborted(belvedere, rolling):
    rolling.traffic.behaviour["v2"].error_rate = 0.5
    ran = await belvedere("rollout", "status", "search", "-w")
    assert ran.code == 6
    assert "rollout of v2 aborted" in ran.out


async def test_pause_and_resume(belvedere, rolling):
    await belvedere("rollout", "pause", "search")
    await rolling.run(3)
    assert (await rolling.status())["rollout"]["phase"] == "Paused"
    await belvedere("rollout", "resume", "search")
    await rolling.run(3)
    assert (await rolling.status())["rollout"]["phase"] == "Progressing"


async def test_history_keeps_more_than_status(belvedere, rolling):
    await belvedere("rollout", "abort", "search")
    ran = await belvedere("rollout", "history", "search", "--output", "json")
    assert [one["decision"] for one in json.loads(ran.out)][-1] == "Abort"
    table = await belvedere("rollout", "history", "search")
    assert "person" in table.out


async def test_history_without_a_journal_shows_what_status_has(belvedere, serving):
    await serving.store.delete(CONFIG_MAP, "search-evidence", "default")
    ran = await belvedere("rollout", "history", "search", "--output", "json")
    assert ran.code == 0


async def test_there_must_be_a_rollout_to_promote(belvedere, serving):
    ran = await belvedere("rollout", "promote", "search")
    assert ran.code == 2
    assert "no rollout in progress" in ran.err


async def test_an_unknown_service_is_named(belvedere, serving):
    ran = await belvedere("rollout", "status", "nothing")
    assert ran.code == 3
    assert "nothing" in ran.err
