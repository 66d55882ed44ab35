"""The object store of a cluster: the same calls as the embedded store's, answered by a Kubernetes API server."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, suppress
from urllib.parse import parse_qs, quote

import msgspec

from belvedere_platform.errors import Gone, InvalidInput, Unavailable
from belvedere_platform.resources.validation import without_nulls
from belvedere_platform.store.admission import SERVER_METADATA, identity, kind_of
from belvedere_platform.store.kinds import Kind
from belvedere_platform.store.kubernetes_transport import Transport, refusal_of
from belvedere_platform.store.protocol import Listing, Manifest, Propagation, WatchEvent

PAGE_SIZE = 500
WATCH_SECONDS = 75
SHORTEST_WATCH_SECONDS = 1.0
APPLY_CONTENT_TYPE = "application/apply-patch+yaml"
_PRECONDITIONS = frozenset({"uid", "resourceVersion"})


class _PageMetadata(msgspec.Struct, rename={"version": "resourceVersion", "more": "continue"}):
    version: str
    more: str = ""


class _Page(msgspec.Struct):
    """A part of a list. Its items are decoded one by one, so that what is not kept of one makes room for the next."""

    metadata: _PageMetadata
    items: list[msgspec.Raw] | None = None


_PAGE = msgspec.json.Decoder(_Page)


class KubernetesStore:
    """Implements ObjectStore. Use one instance in one event loop."""

    def __init__(
        self,
        *,
        kubeconfig: str | None = None,
        context: str | None = None,
        environment: Mapping[str, str] = os.environ,
        monotonic: Callable[[], float] = time.monotonic,
        page_size: int = PAGE_SIZE,
        watch_seconds: int = WATCH_SECONDS,
    ) -> None:
        self._transport = Transport(kubeconfig=kubeconfig, context=context, environment=environment)
        self._monotonic = monotonic
        self._page_size = page_size
        self._watch_seconds = watch_seconds

    async def get(self, kind: Kind, name: str, namespace: str) -> Manifest:
        """Return the object. Raises NotFound."""
        return _cleaned(await self._transport.request("GET", _path(kind, namespace, name)), kind)

    async def list(
        self,
        kind: Kind,
        namespace: str | None = None,
        *,
        labels: Mapping[str, str] | None = None,
        not_older_than: str | None = None,
    ) -> Listing:
        """Return the objects of a kind, of all namespaces when none is given."""
        if not_older_than is not None:
            # In one piece: only then does the server answer from what it has in memory. To read custom resources from
            # etcd, a thousand with their pods' templates, takes it seconds.
            query = {"resourceVersion": not_older_than, "resourceVersionMatch": "NotOlderThan"}
            with suppress(Gone):  # what it has in memory is older
                return await self._pages(kind, namespace, labels, query)
        try:
            return await self._pages(kind, namespace, labels, {"limit": str(self._page_size)})
        except Gone:
            # So much was written between two pages that the first one's state is no longer kept: all in one piece then.
            return await self._pages(kind, namespace, labels, {})

    async def watch(
        self,
        kind: Kind,
        namespace: str | None = None,
        *,
        resource_version: str,
        labels: Mapping[str, str] | None = None,
    ) -> AsyncIterator[WatchEvent]:
        """Yield the changes after a resource version, with bookmarks. Raises Gone when that version is no longer known."""
        if not resource_version.isdecimal() or resource_version == "0":
            raise InvalidInput(f"resourceVersion is {resource_version!r}; it must be one that a list or a watch gave")
        version = resource_version
        while True:
            began = self._monotonic()
            async with aclosing(self._watch_once(kind, namespace, labels, version)) as events:
                async for event in events:
                    version = event.object["metadata"]["resourceVersion"]
                    yield event
            # The server ends each watch after a while, which is no news; one that it ends at once is a failing server.
            if self._monotonic() - began < min(SHORTEST_WATCH_SECONDS, self._watch_seconds / 2):
                raise Unavailable(f"the API server ended the watch of {kind.plural} at once")

    async def apply(self, manifest: Manifest, *, field_manager: str, force: bool = True) -> Manifest:
        """Create the object or merge the fields given. Raises Conflict and InvalidInput."""
        kind = kind_of(manifest)
        namespace, name = identity(manifest, kind)
        body = {field: value for field, value in manifest.items() if field != "status"}
        body["metadata"] = _applied_metadata(manifest, keep=lambda field: field not in SERVER_METADATA)
        return await self._patch(_path(kind, namespace, name), body, kind, field_manager, force=force)

    async def apply_status(self, manifest: Manifest, *, field_manager: str) -> Manifest:
        """Apply `status` alone. Raises NotFound, Conflict and InvalidInput."""
        kind = kind_of(manifest)
        namespace, name = identity(manifest, kind)
        body = {
            "apiVersion": kind.api_version,
            "kind": kind.kind,
            "metadata": _applied_metadata(manifest, keep=lambda field: False),
            "status": manifest.get("status") or {},
        }
        return await self._patch(_path(kind, namespace, name) + "/status", body, kind, field_manager, force=True)

    async def delete(
        self,
        kind: Kind,
        name: str,
        namespace: str,
        *,
        propagation: Propagation = "Background",
        resource_version: str | None = None,
    ) -> None:
        """Delete the object and, unless orphaned, what it owns. Finalizers hold it back. Raises NotFound and Conflict."""
        options: Manifest = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": propagation}
        if resource_version:
            options["preconditions"] = {"resourceVersion": resource_version}
        await self._transport.request("DELETE", _path(kind, namespace, name), body=options)

    async def close(self) -> None:
        """Release the connections."""
        await self._transport.close()

    async def _pages(
        self, kind: Kind, namespace: str | None, labels: Mapping[str, str] | None, asked: Mapping[str, str]
    ) -> Listing:
        items: list[Manifest] = []
        query = {**_selection(labels), **asked}
        while True:
            page = _PAGE.decode(await self._transport.read("GET", _path(kind, namespace), query=query))
            items.extend(_cleaned(msgspec.json.decode(item), kind) for item in page.items or ())
            if not page.metadata.more:
                return Listing(items=items, resource_version=page.metadata.version)
            query["continue"] = page.metadata.more

    async def _watch_once(
        self, kind: Kind, namespace: str | None, labels: Mapping[str, str] | None, version: str
    ) -> AsyncGenerator[WatchEvent, None]:
        path = _path(kind, namespace)
        query = _selection(labels) | {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(self._watch_seconds),
        }
        async with self._transport.lines(path, query) as lines:
            async for line in lines:
                event = msgspec.json.decode(line)
                if event["type"] == "ERROR":
                    status = event["object"]
                    raise refusal_of(int(status.get("code") or 500), status, path)
                yield WatchEvent(type=event["type"], object=_event_object(event, kind))

    async def _patch(self, path: str, body: Manifest, kind: Kind, field_manager: str, *, force: bool) -> Manifest:
        body = without_nulls(body)
        query = {"fieldManager": field_manager, "force": str(force).lower(), "fieldValidation": "Strict"}
        answer = await self._transport.request("PATCH", path, query=query, body=body, content_type=APPLY_CONTENT_TYPE)
        return _cleaned(answer, kind)


def open_url(rest: str) -> KubernetesStore:
    """Return the store for what follows `kubernetes://` in a URL. Raises InvalidInput for an option that is not known."""
    place, _, query = rest.partition("?")
    options = parse_qs(query, keep_blank_values=True)
    unknown = sorted(set(options) - {"kubeconfig", "context"})
    if place or unknown:
        raise InvalidInput(
            f"the store is kubernetes://{rest}; it must be kubernetes:// and, if need be, ?kubeconfig=PATH and context=NAME"
        )
    kubeconfig, context = (options.get(name, [""])[-1] or None for name in ("kubeconfig", "context"))
    return KubernetesStore(kubeconfig=kubeconfig, context=context)


def _path(kind: Kind, namespace: str | None, name: str | None = None) -> str:
    place = f"/namespaces/{quote(namespace, safe='')}" if kind.namespaced and namespace else ""
    return f"{kind.path}{place}/{kind.plural}" + (f"/{quote(name, safe='')}" if name else "")


def _selection(labels: Mapping[str, str] | None) -> dict[str, str]:
    return {"labelSelector": ",".join(f"{name}={value}" for name, value in labels.items())} if labels else {}


def _applied_metadata(manifest: Manifest, *, keep: Callable[[str], bool]) -> Manifest:
    """Return the name, the preconditions, and of the rest what the caller keeps and what is not empty."""
    given = manifest["metadata"]
    metadata = {field: given[field] for field in ("name", "namespace", *sorted(_PRECONDITIONS)) if given.get(field)}
    return metadata | {field: value for field, value in given.items() if keep(field) and value not in (None, {}, [])}


def _event_object(event: Manifest, kind: Kind) -> Manifest:
    if event["type"] == "BOOKMARK":
        return {"metadata": {"resourceVersion": event["object"]["metadata"]["resourceVersion"]}}
    return _cleaned(event["object"], kind)


def _cleaned(manifest: Manifest, kind: Kind) -> Manifest:
    """Return the object as everyone here expects it: lists of built-in kinds leave out what each item is."""
    manifest["metadata"].pop("managedFields", None)
    return {"apiVersion": kind.api_version, "kind": kind.kind, **manifest}
