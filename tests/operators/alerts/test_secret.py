"""The secret that the operator makes for Alertmanager."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path

import pytest

from belvedere_operators.alerts.secret import kept_token, new_token
from belvedere_platform.errors import InvalidInput
from belvedere_platform.store.embedded import EmbeddedStore
from belvedere_platform.store.kinds import SECRET


@pytest.fixture
def store(tmp_path: Path) -> EmbeddedStore:
    return EmbeddedStore(tmp_path / "store.db")


async def test_it_is_made_once_and_then_kept(store: EmbeddedStore) -> None:
    first = await kept_token(store, "system", "alerts")
    assert len(first) >= 32
    assert await kept_token(store, "system", "alerts") == first
    stored = await store.get(SECRET, "alerts", "system")
    assert base64.b64decode(stored["data"]["token"]).decode() == first


async def test_operators_that_start_together_agree(store: EmbeddedStore) -> None:
    found = await asyncio.gather(*(kept_token(store, "system", "alerts") for _ in range(5)))
    assert len(set(found)) == 1


async def test_one_that_a_person_made_is_used(store: EmbeddedStore) -> None:
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "alerts", "namespace": "system"}}
    data = {"token": base64.b64encode(b"theirs\n").decode()}
    await store.apply({**secret, "data": data}, field_manager="person")
    assert await kept_token(store, "system", "alerts") == "theirs"


async def test_one_without_token_is_an_error_that_names_it(store: EmbeddedStore) -> None:
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "alerts", "namespace": "system"}}
    await store.apply({**secret, "data": {"password": "eA=="}}, field_manager="person")
    with pytest.raises(InvalidInput, match="system/alerts has no token"):
        await kept_token(store, "system", "alerts")


def test_no_two_tokens_are_alike() -> None:
    assert len({new_token() for _ in range(100)}) == 100
