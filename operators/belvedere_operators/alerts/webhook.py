"""POST /alerts: hear what Alertmanager says, from whoever knows the secret, and write it into the service's book.

The book is a ConfigMap beside the service, so a restarted operator knows what fires, and writing it wakes the controller.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from aiohttp import web
from prometheus_client import Counter

from belvedere_operators.alerts.book import ALERTS_KEY, Book, Told, alerts_name, read_book, told_of
from belvedere_operators.manifests.ownership import child_metadata, service_labels
from belvedere_operators.runtime import Clock
from belvedere_platform.errors import BelvedereError, Conflict, CorruptData, InvalidInput, NotFound
from belvedere_platform.store import Manifest, ObjectStore
from belvedere_platform.store.kinds import CONFIG_MAP, MODEL_SERVICE

log = logging.getLogger(__name__)

FIELD_MANAGER = "belvedere-alerts"
LARGEST_MESSAGE_BYTES = 1 << 20
LARGEST_MESSAGE_ALERTS = 1024
ATTEMPTS = 5
HEARD = Counter("belvedere_alerts_heard_total", "Alerts received, by what became of them", ["outcome"])

Place = tuple[str, str]
"""Namespace and service."""


class AlertWebhook:
    """Remembers nothing: a message is in the store before it is answered."""

    def __init__(self, store: ObjectStore, *, clock: Clock, secret: str, namespaces: Sequence[str] = ()) -> None:
        if not secret:
            raise InvalidInput("the alert webhook has no secret; set one, or anybody could abort a rollout")
        self._store = store
        self._clock = clock
        self._expected = f"Bearer {secret}".encode()
        self._namespaces = frozenset(namespaces)
        self._writing = asyncio.Lock()

    def add_to(self, application: web.Application) -> None:
        """Serve POST /alerts in an application."""
        application.router.add_post("/alerts", self.handle)

    async def handle(self, request: web.Request) -> web.Response:
        """Answer one message: 200 when it is written down, 400, 401, 413, or 503 when it must be sent again."""
        given = request.headers.get("Authorization", "").encode(errors="surrogateescape")
        if not hmac.compare_digest(given, self._expected):
            HEARD.labels("unauthorized").inc()
            return _answer(401, error="the Authorization header does not carry the secret of this operator")
        try:
            message = _alerts_of(await _body(request))
            heard, ignored = self._sort(message)
            for place, told in heard.items():
                ignored += await self._write(place, told)
        except InvalidInput as error:
            HEARD.labels("invalid").inc()
            return _answer(400, error=str(error))
        except BelvedereError as error:
            HEARD.labels("failed").inc()
            log.warning("alerts could not be written down, Alertmanager will send them again: %s", error)
            return _answer(503, error=str(error))
        accepted = len(message) - len(ignored)
        HEARD.labels("accepted").inc(accepted)
        HEARD.labels("ignored").inc(len(ignored))
        return _answer(200, accepted=accepted, ignored=ignored)

    def _sort(self, message: list[Mapping[str, Any]]) -> tuple[dict[Place, list[Told]], list[str]]:
        """Return the alerts by service, and why some are not ours."""
        heard: dict[Place, list[Told]] = defaultdict(list)
        ignored: list[str] = []
        wrong: list[InvalidInput] = []
        now = self._clock().timestamp()
        for alert in message:
            labels = alert.get("labels")
            if not isinstance(labels, Mapping) or not all(
                labels.get(label) for label in ("namespace", "service", "belvedere_action")
            ):
                ignored.append("an alert has no label namespace, service or belvedere_action")
                continue
            if self._namespaces and labels["namespace"] not in self._namespaces:
                # Another Belvedere's of the same Alertmanager: to refuse it would have it sent again for ever.
                ignored.append(f"this operator does not act on namespace {labels['namespace']}")
                continue
            try:
                told = told_of(alert, heard=now)
            except InvalidInput as error:
                wrong.append(error)
                continue
            heard[str(labels["namespace"]), str(labels["service"])].append(told)
        if wrong and not heard:
            raise wrong[0]
        for one in wrong:
            # Refused, Alertmanager would not send the message again, and what is right in it would be lost.
            log.warning("an alert is not understood, the others of its message are: %s", one)
        return heard, [*ignored, *map(str, wrong)]

    async def _write(self, place: Place, told: list[Told]) -> list[str]:
        """Write alerts into the book of a service, and return why they were not, if it does not exist."""
        namespace, service = place
        async with self._writing:
            for attempt in range(ATTEMPTS):
                try:
                    owner = await self._store.get(MODEL_SERVICE, service, namespace)
                    await self._update(owner, told)
                    return []
                except NotFound:
                    return [f"ModelService {namespace}/{service} does not exist"] * len(told)
                except Conflict:
                    if attempt == ATTEMPTS - 1:
                        raise
        raise AssertionError("unreachable")

    async def _update(self, owner: Manifest, told: list[Told]) -> None:
        namespace, service = owner["metadata"]["namespace"], owner["metadata"]["name"]
        try:
            stored: Manifest | None = await self._store.get(CONFIG_MAP, alerts_name(service), namespace)
        except NotFound:
            stored = None
        try:
            before = read_book(stored)
        except CorruptData as error:
            log.warning("%s; beginning a new one", error)
            before = Book()
        after = before.hear(told)
        if after == before:
            return
        for one in told:
            log.info("alert %s service=%s/%s version=%s %s", one.name, namespace, service, one.version, one.status)
        await self._store.apply(_book_manifest(owner, after, stored), field_manager=FIELD_MANAGER)


def _book_manifest(owner: Manifest, book: Book, stored: Manifest | None) -> Manifest:
    service = owner["metadata"]["name"]
    metadata = child_metadata(owner, alerts_name(service), service_labels(service))
    if stored is not None:
        metadata["resourceVersion"] = stored["metadata"]["resourceVersion"]
    fields = book.model_dump(by_alias=True, mode="json", exclude_defaults=True)
    return {
        "apiVersion": CONFIG_MAP.api_version,
        "kind": CONFIG_MAP.kind,
        "metadata": metadata,
        "data": {ALERTS_KEY: json.dumps(fields, sort_keys=True)},
    }


async def _body(request: web.Request) -> Any:
    if request.content_length is not None and request.content_length > LARGEST_MESSAGE_BYTES:
        raise web.HTTPRequestEntityTooLarge(max_size=LARGEST_MESSAGE_BYTES, actual_size=request.content_length)
    try:
        return json.loads(await request.read())
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"the body is not JSON: {error}") from error


def _alerts_of(body: Any) -> list[Mapping[str, Any]]:
    """Return the alerts of an Alertmanager webhook message, version 4."""
    if not isinstance(body, Mapping) or body.get("version") != "4":
        version = body.get("version") if isinstance(body, Mapping) else None
        raise InvalidInput(f"version is {version!r}; an Alertmanager webhook message of version '4' is needed")
    alerts = body.get("alerts")
    if not isinstance(alerts, list) or len(alerts) > LARGEST_MESSAGE_ALERTS:
        raise InvalidInput(f"alerts must be a list of at most {LARGEST_MESSAGE_ALERTS}")
    if not all(isinstance(alert, Mapping) for alert in alerts):
        raise InvalidInput("alerts[] must be objects")
    return alerts


def _answer(status: int, **fields: Any) -> web.Response:
    return web.json_response(fields, status=status)
