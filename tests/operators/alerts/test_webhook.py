"""What the webhook takes, refuses and remembers."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from hypothesis import given
from hypothesis import strategies as st

from belvedere_operators.alerts.book import LARGEST_BOOK, Book, for_decision, read_book, told_of
from belvedere_operators.alerts.webhook import AlertWebhook
from belvedere_platform.errors import InvalidInput, NotFound, Unavailable
from belvedere_platform.store.kinds import CONFIG_MAP

SECRET = "a long secret"
BEGAN = "2026-01-01T00:00:00.123Z"


def alert(**changes: Any) -> dict[str, Any]:
    labels = {
        "alertname": "CandidateErrorBudgetBurn",
        "belvedere_action": "abort",
        "namespace": "shop",
        "service": "search",
        "version": "v2",
    }
    return {
        "status": "firing",
        "labels": {**labels, **changes.pop("labels", {})},
        "annotations": {"summary": "errors of v2"},
        "startsAt": BEGAN,
        "endsAt": "0001-01-01T00:00:00Z",
        "fingerprint": "f1",
        **changes,
    }


def message(*alerts: dict[str, Any]) -> dict[str, Any]:
    return {"version": "4", "status": "firing", "alerts": list(alerts)}


class Failing:
    """A store that does not answer."""

    async def get(self, *given: Any) -> Any:
        raise Unavailable("the store does not answer")


@pytest.fixture
async def post(store, clock):
    application = web.Application()
    AlertWebhook(store, clock=clock, secret=SECRET).add_to(application)
    async with TestClient(TestServer(application)) as client:

        async def send(body: Any, *, secret: str | None = SECRET) -> tuple[int, dict[str, Any]]:
            headers = {"Authorization": f"Bearer {secret}"} if secret is not None else {}
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            async with client.post("/alerts", data=data, headers=headers) as response:
                return response.status, await response.json()

        yield send


async def book_of(store) -> Book:
    try:
        return read_book(await store.get(CONFIG_MAP, "search-alerts", "shop"))
    except NotFound:
        return Book()


@pytest.mark.parametrize("secret", ["wrong", "", None, SECRET + "x"])
async def test_without_the_secret_nothing_is_heard(post, store, secret):
    status, _ = await post(message(alert()), secret=secret)
    assert status == 401
    assert not (await book_of(store)).alerts


async def test_a_webhook_without_a_secret_is_refused(store, clock):
    with pytest.raises(InvalidInput, match="secret"):
        AlertWebhook(store, clock=clock, secret="")


async def test_a_firing_alert_is_written_beside_the_service(post, store, clock):
    status, answer = await post(message(alert()))
    assert (status, answer["accepted"]) == (200, 1)
    (told,) = (await book_of(store)).firing(now=clock().timestamp(), stale_seconds=60)
    assert (told.name, told.action, told.version) == ("CandidateErrorBudgetBurn", "abort", "v2")
    stored = await store.get(CONFIG_MAP, "search-alerts", "shop")
    assert stored["metadata"]["ownerReferences"][0]["name"] == "search"


async def test_an_alert_of_a_namespace_that_is_another_operators_is_ignored_not_refused(clock):
    application = web.Application()
    # It may not even read there: the API server would refuse, and Alertmanager send again for ever.
    AlertWebhook(Failing(), clock=clock, secret=SECRET, namespaces=["elsewhere"]).add_to(application)
    async with TestClient(TestServer(application)) as client:
        headers = {"Authorization": f"Bearer {SECRET}"}
        async with client.post("/alerts", json=message(alert()), headers=headers) as response:
            answer = await response.json()
    assert (response.status, answer["accepted"]) == (200, 0)
    assert answer["ignored"] == ["this operator does not act on namespace shop"]


async def test_the_same_message_again_writes_nothing(post, store, clock):
    await post(message(alert()))
    before = await store.get(CONFIG_MAP, "search-alerts", "shop")
    await clock.advance(1)
    await post(message(alert()))
    assert await store.get(CONFIG_MAP, "search-alerts", "shop") == before


async def test_a_resolved_alert_stays_resolved_though_an_old_message_comes_late(post, store, clock):
    await post(message(alert()))
    await post(message(alert(status="resolved")))
    await post(message(alert()))
    assert not (await book_of(store)).firing(now=clock().timestamp(), stale_seconds=60)


async def test_an_alert_that_begins_again_fires_again(post, store, clock):
    await post(message(alert(status="resolved")))
    await post(message(alert(startsAt="2026-01-01T00:05:00Z")))
    assert (await book_of(store)).firing(now=clock().timestamp(), stale_seconds=60)
    await post(message(alert(status="resolved")))
    assert (await book_of(store)).firing(now=clock().timestamp(), stale_seconds=60)


async def test_messages_at_the_same_time_are_all_kept(post, store):
    await asyncio.gather(*(post(message(alert(fingerprint=f"f{index}"))) for index in range(10)))
    assert len((await book_of(store)).alerts) == 10


async def test_alerts_that_are_not_ours_are_ignored_and_said(post):
    foreign = alert()
    del foreign["labels"]["belvedere_action"]
    unknown = alert(labels={"service": "gone"})
    status, answer = await post(message(foreign, unknown, alert()))
    assert (status, answer["accepted"]) == (200, 1)
    assert "shop/gone does not exist" in " ".join(answer["ignored"])


async def test_one_that_is_not_understood_takes_no_other_with_it(post, store):
    wrong = alert(fingerprint="other", labels={"belvedere_action": "explode"})
    status, answer = await post(message(wrong, alert()))
    assert (status, answer["accepted"]) == (200, 1)
    assert "belvedere_action is 'explode'" in " ".join(answer["ignored"])
    assert [one.action for one in (await book_of(store)).alerts] == ["abort"]


async def test_any_bytes_may_stand_where_the_secret_should(clock):
    application = web.Application()
    AlertWebhook(Failing(), clock=clock, secret=SECRET).add_to(application)
    async with TestServer(application) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"POST /alerts HTTP/1.1\r\nHost: x\r\nAuthorization: \xff\r\nContent-Length: 0\r\n\r\n")
        assert b" 401 " in await reader.readline()
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b"not json", "JSON"),
        (b"[" * 100_000, "JSON"),
        ({"version": "3", "alerts": []}, "version"),
        ([], "version"),
        ({"version": "4", "alerts": {}}, "alerts"),
        (message(alert(status="odd")), "status"),
        (message(alert(startsAt="yesterday")), "startsAt"),
        (message(alert(fingerprint=None)), "fingerprint"),
        (message(alert(labels={"belvedere_action": "explode"})), "belvedere_action"),
    ],
)
async def test_what_cannot_be_understood_is_refused_by_name(post, body, named):
    status, answer = await post(body)
    assert status == 400
    assert named in answer["error"]


async def test_a_message_that_cannot_be_written_is_asked_for_again(clock):
    application = web.Application()
    AlertWebhook(Failing(), clock=clock, secret=SECRET).add_to(application)
    async with (
        TestClient(TestServer(application)) as client,
        client.post("/alerts", json=message(alert()), headers={"Authorization": f"Bearer {SECRET}"}) as response,
    ):
        assert response.status == 503


def told(**changes: Any):
    return told_of(alert(**changes), heard=changes.get("heard", 1000.0))


def test_an_alert_that_is_not_repeated_is_no_longer_believed():
    book = Book().hear([told()])
    assert book.firing(now=1100.0, stale_seconds=900)
    assert not book.firing(now=2000.0, stale_seconds=900)


def test_an_abort_from_before_the_rollout_is_about_an_earlier_try():
    one = told()
    assert for_decision([one], since=one.began - 10)
    assert not for_decision([one], since=one.began + 10)


def test_the_heartbeat_is_known_and_never_an_action():
    book = Book().hear([told(labels={"belvedere_action": "heartbeat", "alertname": "BelvedereWatchdog"})])
    assert book.heartbeat() == 1000.0
    assert for_decision(book.alerts, since=0.0) == ()


@given(st.lists(st.tuples(st.integers(0, 200), st.booleans()), max_size=150))
def test_the_book_stays_small_and_keeps_what_fires(messages):
    book = Book()
    for number, fires in messages:
        book = book.hear([told(fingerprint=f"f{number}", status="firing" if fires else "resolved")])
    assert len(book.alerts) <= LARGEST_BOOK
