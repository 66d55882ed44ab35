"""Requests to a Kubernetes API server: who we are there, and what its refusals mean to a user.

The official client brings the host, the certificates and the credentials; objects stay plain dicts.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined]

import aiohttp
import msgspec
from aiohttp.connector import NEEDS_CLEANUP_CLOSED
from kubernetes.aio import client, config
from kubernetes.aio.client.rest import RESTClientObject
from kubernetes.aio.config import kube_config
from kubernetes.aio.config.config_exception import ConfigException
from yaml import YAMLError

from belvedere_platform.errors import BelvedereError, Conflict, Gone, InvalidInput, NotFound, NotInstalled, Unavailable

REQUEST_TIMEOUT = aiohttp.ClientTimeout(total=60, sock_connect=10)
# The server ends each watch sooner than this, so one that is silent for longer has lost its connection.
WATCH_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=90)
SERVICE_ACCOUNT_TOKEN = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")
_UNAUTHORIZED = 401
_UNTYPED = "failed to create typed patch object "


class _Pool(RESTClientObject):  # type: ignore[misc]
    """The client's pool, which when it is closed also ends the connections of requests that were given up.

    They say good-bye by TLS, and aiohttp forgets them: a loop that ended before the server's answer left them open.
    """

    def _create_connector(self) -> aiohttp.TCPConnector:
        return aiohttp.TCPConnector(
            limit=self.maxsize, ssl=self.ssl_context, enable_cleanup_closed=NEEDS_CLEANUP_CLOSED
        )


class _Keys:
    """The files that the client writes keys and certificates to, because TLS reads them from files alone.

    It would keep them until the process ends, and for good where that is killed. All connections of a process share them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_readers = 0

    @contextmanager
    def on_disk(self) -> Iterator[None]:
        """Have them for the time of a with block; they go with the last who needs them."""
        with self._lock:
            self._num_readers += 1
        try:
            yield
        finally:
            with self._lock:
                self._num_readers -= 1
                if not self._num_readers:
                    kube_config._cleanup_temp_files()


_keys = _Keys()


class Transport:
    """One authenticated connection pool. Credentials are read at the first request, and again when they have expired."""

    def __init__(self, *, kubeconfig: str | None, context: str | None, environment: Mapping[str, str]) -> None:
        self._kubeconfig = kubeconfig
        self._context = context
        self._environment = environment
        self._client: Any = None
        self._opening = asyncio.Lock()
        self._closed = False

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        content_type: str = "application/json",
    ) -> dict[str, Any]:
        """Return the object answered. Raises what `refusal` makes of an error."""
        answer: dict[str, Any] = msgspec.json.decode(
            await self.read(method, path, query=query, body=body, content_type=content_type)
        )
        return answer

    async def read(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        content_type: str = "application/json",
    ) -> bytes:
        """Return the answer as it was sent. Raises what `refusal` makes of an error."""
        # To compress and to expand takes both sides longer than the network of a cluster needs for the rest.
        headers = {"Content-Type": content_type, "Accept-Encoding": "identity"}
        async with self._answer(method, path, query or {}, headers, body, REQUEST_TIMEOUT) as response:
            return await response.read()

    @asynccontextmanager
    async def lines(self, path: str, query: Mapping[str, str]) -> AsyncIterator[AsyncIterator[bytes]]:
        """Give the lines of an answer that goes on and on."""
        async with self._answer("GET", path, query, {}, None, WATCH_TIMEOUT) as response:
            yield _lines(response.content)

    async def close(self) -> None:
        """Close the connections."""
        self._closed = True
        if self._client is not None:
            await self._client.close()
            self._client = None

    @asynccontextmanager
    async def _answer(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        headers: dict[str, str],
        body: Mapping[str, Any] | None,
        limits: aiohttp.ClientTimeout,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        try:
            response = await self._send(method, path, query, headers, body, limits)
            async with response:
                try:
                    if response.status >= 400:
                        raise refusal(response.status, await response.read(), path)
                    yield response
                finally:
                    _hang_up(response)
        except (aiohttp.ClientError, TimeoutError) as error:
            reason = str(error) or "no answer in time"
            raise Unavailable(f"the API server does not answer {method} {path}: {reason}") from error

    async def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        headers: dict[str, str],
        body: Mapping[str, Any] | None,
        limits: aiohttp.ClientTimeout,
    ) -> aiohttp.ClientResponse:
        for attempt in (1, 2):
            api = await self._open()
            verb, url, header_params, _, post_params = await api.param_serialize(
                method,
                path,
                query_params=list(query.items()),
                header_params={"Accept": "application/json", **headers},
                auth_settings=["BearerToken"],
            )
            # The body is plain already; the client would go through all of it to make it so.
            answer = await api.call_api(verb, url, header_params, body, post_params, _request_timeout=limits)
            response: aiohttp.ClientResponse = answer.response
            if response.status != _UNAUTHORIZED or attempt == 2:
                return response
            # A token from a plugin lives for minutes; asking the plugin again is all that is needed.
            response.release()
            await self._forget(api)
        raise AssertionError("the second attempt returns")

    async def _open(self) -> client.ApiClient:
        async with self._opening:
            if self._closed:
                raise Unavailable("the connection to the API server is closed")
            if self._client is None:
                self._client = await self._connected()
            return self._client

    async def _connected(self) -> client.ApiClient:
        """Return a client with the credentials as they are now. Raises InvalidInput when they cannot be used."""
        path = kubeconfig_path(self._kubeconfig, self._environment)
        try:
            with _keys.on_disk():
                configuration = await self._configuration(path)
                api = client.ApiClient(configuration)
                api.rest_client = _Pool(configuration)
        except (ConfigException, OSError, YAMLError, ValueError, TypeError, KeyError, AttributeError) as error:
            # The client reads it as if it were well formed: what is not shows as whatever error comes first.
            reason = " ".join(str(error).split())
            raise InvalidInput(f"the kubeconfig {path or 'of this pod'} cannot be used: {reason}") from error
        return api

    async def _forget(self, api: client.ApiClient) -> None:
        """Let the next request read the credentials anew. Watches of the old pool end and are taken up again."""
        if self._client is api:
            self._client = None
            await api.close()

    async def _configuration(self, path: str | None) -> client.Configuration:
        # 0 is no limit: each watch holds a connection of its own for as long as it lasts.
        configuration = client.Configuration(connection_pool_maxsize=0)
        if path is None:
            config.load_incluster_config(configuration)
        else:
            await config.load_kube_config(
                str(path), context=self._context, client_configuration=configuration, persist_config=False
            )
        # Left to the environment, aiohttp would look for ~/.netrc and for proxies before each request, in a thread each time.
        configuration.client_session_kwargs = {"trust_env": False}
        configuration.proxy = configuration.proxy or proxy_for(configuration.host, self._environment)
        return configuration


def proxy_for(url: str, environment: Mapping[str, str]) -> str | None:
    """Return the proxy that the environment names for a URL, in small letters or in capitals; None to go without."""

    def told(name: str) -> str | None:
        return environment.get(name) or environment.get(name.upper()) or None

    scheme, host = urlsplit(url).scheme, urlsplit(url).netloc.rpartition("@")[2]
    if proxy_bypass_environment(host, {"no": told("no_proxy") or ""}):
        return None
    return told(f"{scheme}_proxy")


def kubeconfig_path(given: str | None, environment: Mapping[str, str]) -> str | None:
    """Return the kubeconfig to use: the one given, that of KUBECONFIG, none inside a pod, else ~/.kube/config."""
    path = given or environment.get("KUBECONFIG")
    if not path and environment.get("KUBERNETES_SERVICE_HOST") and SERVICE_ACCOUNT_TOKEN.exists():
        return None
    path = path or str(Path(environment.get("HOME", "~")).expanduser() / ".kube" / "config")
    # KUBECONFIG may name several files, as for kubectl.
    if not any(Path(part).expanduser().is_file() for part in path.split(":") if part):
        raise InvalidInput(
            f"the kubeconfig {path} does not exist: name one with KUBECONFIG or kubernetes://?kubeconfig=PATH"
        )
    return path


def refusal(status: int, body: bytes, path: str) -> BelvedereError:
    """Return the error for an answer of the API server, with the server's own message: it names the field."""
    try:
        answer = json.loads(body)
    except ValueError:
        answer = {}
    if not isinstance(answer, dict) or answer.get("kind") != "Status":
        answer = {"message": body.decode(errors="replace").strip()[:500]}
    return refusal_of(status, answer, path)


def refusal_of(status: int, answer: Mapping[str, Any], path: str) -> BelvedereError:
    """Return the error for a Status object."""
    message = str(answer.get("message") or f"status {status}")
    details = answer.get("details") or {}
    causes = details.get("causes") or ()
    if status == 410 or any(cause.get("reason") == "ResourceVersionTooLarge" for cause in causes):
        return Gone(f"{message}: list again")
    if status == 404 and details.get("name"):
        return NotFound(message)
    if status == 404:
        return NotInstalled(f"the cluster does not know {path}: install the resource definition it belongs to")
    if status == 409 or any(cause.get("field") == "metadata.uid" for cause in causes):
        return Conflict(message)
    if status == 500 and _UNTYPED in message:
        # What it cannot read as the schema says, the server calls an error of its own.
        return InvalidInput(message.partition(_UNTYPED)[2])
    if status == 422 and causes:
        return InvalidInput(f"{details.get('kind', '')} {details.get('name', '')}: {'; '.join(_readable(causes))}")
    if status in (400, 405, 406, 413, 415, 422):
        return InvalidInput(message)
    if status in (_UNAUTHORIZED, 403):
        return Unavailable(f"the API server refuses {path}: {message}; check the credentials and their roles")
    return Unavailable(f"the API server answers {path} with {status}: {message}")


def _readable(causes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a sentence for each wrong field, without what the server says of itself and of values that it cannot show."""
    sentences = []
    for cause in causes:
        message = str(cause.get("message", "")).replace('Invalid value: "object": ', "")
        field = str(cause.get("field", "")).replace("<nil>", "")
        if "some validation rules were not checked" not in message:
            sentences.append(f"{field}: {message}" if field else message)
    return sentences


def _hang_up(response: aiohttp.ClientResponse) -> None:
    """End the connection of an answer that was not read to its end, such as a watch's.

    aiohttp would say good-bye by TLS and forget it; a loop that ends before the server's answer then leaves it open.
    """
    if response.connection is not None and response.connection.transport is not None:
        response.connection.transport.abort()


async def _lines(stream: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    # Not readline: it fails on lines beyond its buffer, and an object may be as large as etcd allows.
    pending = bytearray()
    async for chunk in stream.iter_any():
        pending += chunk
        if b"\n" in chunk:
            *complete, rest = bytes(pending).split(b"\n")
            pending = bytearray(rest)
            for line in complete:
                yield line
