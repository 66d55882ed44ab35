"""The operator in a cluster: one acts, another stands by and is ready, and what ends the one lets the other act."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from belvedere_operators.commands.operator import operator
from belvedere_operators.controllers.context import Settings
from belvedere_operators.controlplane.cluster import Candidacy, ClusterOperator, until_first
from belvedere_operators.runtime import SystemClock
from belvedere_operators.runtime.clock import settle
from belvedere_operators.runtime.lease import LeadershipLost
from belvedere_platform.errors import InvalidInput, NotFound, Unavailable
from belvedere_platform.store.embedded import EmbeddedStore
from belvedere_platform.store.kinds import LEASE, TRAINING_RUN

Make = Callable[..., ClusterOperator]


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[EmbeddedStore]:
    opened = EmbeddedStore(tmp_path / "store.db")
    yield opened
    await opened.close()


@pytest.fixture
async def make(store: EmbeddedStore, tmp_path: Path) -> AsyncIterator[Make]:
    """Make an operator that would hold the lease under a name of its own."""
    made: list[ClusterOperator] = []

    def one(identity: str | None = None, through: Any = store) -> ClusterOperator:
        settings = Settings(
            instance="test",
            artifacts_url=str(tmp_path / "artifacts"),
            store_url="sqlite:///unused",
            prometheus_url="http://127.0.0.1:9",
            toolchain={"onnxruntime": "1"},
        )
        candidacy = Candidacy(namespace="belvedere", name="operator", identity=identity) if identity else None
        made.append(ClusterOperator(through, SystemClock(), settings, candidacy))
        return made[-1]

    yield one
    for each in made:
        await each.close()


async def acts(operator: ClusterOperator) -> None:
    await asyncio.wait_for(operator.acting.wait(), 30)


async def stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_one_acts_and_a_standby_is_ready_and_takes_over_at_once(store: EmbeddedStore, make: Make) -> None:
    first, second = make("first"), make("second")
    leading = asyncio.create_task(first.run())
    await acts(first)
    waiting = asyncio.create_task(second.run())
    await settle()
    assert not second.acting.is_set()
    assert set((await second.parts()).values()) == {"ready"}
    await stop(leading)
    lease = await store.get(LEASE, "operator", "belvedere")
    assert lease["spec"]["holderIdentity"] == ""
    await acts(second)
    assert not first.acting.is_set()
    await stop(waiting)


async def test_an_operator_that_acts_is_ready_when_it_has_read_the_store(make: Make) -> None:
    acting = make()
    task = asyncio.create_task(acting.run())
    await asyncio.wait_for(acting.wait_ready(), 30)
    assert set((await acting.parts()).values()) == {"ready"}
    assert acting.stuck() == []
    await stop(task)


class WithoutRuns:
    """A store that knows everything but one kind."""

    def __init__(self, store: EmbeddedStore) -> None:
        self._store = store
        self.refused = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def list(self, kind: Any, *arguments: Any, **more: Any) -> Any:
        if kind is TRAINING_RUN:
            self.refused.set()
            raise Unavailable("the cluster does not know trainingruns")
        return await self._store.list(kind, *arguments, **more)


async def test_one_that_cannot_read_a_kind_is_not_ready_and_says_which(store: EmbeddedStore, make: Make) -> None:
    partial = WithoutRuns(store)
    acting = make(through=partial)
    task = asyncio.create_task(acting.run())
    await asyncio.wait_for(partial.refused.wait(), 30)
    await settle()
    assert (await acting.parts())[
        "control plane"
    ] == "reading the store; trainingruns: the cluster does not know trainingruns"
    await stop(task)


async def test_a_lease_that_another_took_ends_the_work(store: EmbeddedStore, make: Make) -> None:
    first = make("first")
    task = asyncio.create_task(first.run())
    await acts(first)
    lease = await store.get(LEASE, "operator", "belvedere")
    lease["spec"] |= {"holderIdentity": "thief"}
    lease["metadata"] = {"name": "operator", "namespace": "belvedere"}
    await store.apply(lease, field_manager="belvedere-leader-election")
    with pytest.raises(LeadershipLost, match="is held by thief"):
        await asyncio.wait_for(task, 30)
    assert not first.acting.is_set()


async def test_the_first_to_end_ends_the_others_and_its_error_is_raised() -> None:
    ended = []

    async def waits() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("waits")

    async def fails() -> None:
        raise Unavailable("no")

    with pytest.raises(Unavailable, match="no"):
        await until_first(waits, fails)
    assert ended == ["waits"]


@pytest.mark.parametrize(
    ("words", "environment", "says"),
    [
        ([], {}, "--alerts-secret are missing"),
        (["--alerts-secret-file", "absent"], {}, "--alerts-secret-file absent cannot be read"),
        (["--alerts-secret-file", "secret", "--lease", "operator"], {}, "--lease is 'operator'; it must be NAMESPACE/"),
        (["--alerts-secret-file", "empty"], {}, "--alerts-secret-file empty is empty"),
        ([], {"BELVEDERE_OPERATOR_ALERTS_SECRET_FILE": "absent"}, "--alerts-secret-file absent cannot be read"),
        (
            ["--alerts-secret-file", "secret"],
            {"BELVEDERE_OPERATOR_POD_DEFAULTS": "absent"},
            "the pod defaults absent cannot be read",
        ),
    ],
)
def test_an_option_that_is_wrong_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], environment: dict[str, str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret").write_text("hush")
    (tmp_path / "empty").write_text("\n")
    result = CliRunner().invoke(operator, words, env=environment)
    assert isinstance(result.exception, InvalidInput)
    assert says in str(result.exception)


async def test_a_lease_that_was_never_taken_is_not_there(store: EmbeddedStore, make: Make) -> None:
    make("first")
    with pytest.raises(NotFound):
        await store.get(LEASE, "operator", "belvedere")
