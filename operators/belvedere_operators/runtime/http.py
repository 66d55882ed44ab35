"""The connections under httpx, made by aiohttp: its parser is compiled, and a thousand dashboards are asked all day.

Measured with the operator's benchmark: httpx's own connections took a third of the operator's processor time.
"""

from __future__ import annotations

from types import TracebackType

import aiohttp
import httpx
from yarl import URL

MAX_CONNECTIONS = 50
KEEPALIVE_SECONDS = 5.0
"""Each RayService has a dashboard of its own, asked seldom: keeping a connection for each helps nobody."""
_OURS = frozenset({"connection", "transfer-encoding", "content-length"})


class AiohttpTransport(httpx.AsyncBaseTransport):
    """Use it in one event loop. Answers are read whole: what the operator asks for is small."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Return the answer. Raises what httpx's own transport would."""
        body = await request.aread()
        headers = [(name, value) for name, value in request.headers.multi_items() if name not in _OURS]
        try:
            async with self._open().request(
                request.method,
                URL(str(request.url), encoded=True),
                headers=headers,
                data=body or None,
                allow_redirects=False,
                timeout=_timeouts(request),
            ) as answer:
                content = await answer.read()
        except aiohttp.ConnectionTimeoutError as error:
            raise httpx.ConnectTimeout(_told(error), request=request) from error
        except TimeoutError as error:
            raise httpx.ReadTimeout(_told(error), request=request) from error
        except aiohttp.ClientConnectorError as error:
            raise httpx.ConnectError(_told(error), request=request) from error
        except aiohttp.ClientError as error:
            raise httpx.RemoteProtocolError(_told(error), request=request) from error
        return httpx.Response(answer.status, headers=answer.raw_headers, content=content, request=request)

    async def aclose(self) -> None:
        """Release the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        """Release the connections."""
        await self.aclose()

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=MAX_CONNECTIONS, keepalive_timeout=KEEPALIVE_SECONDS),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
            )
        return self._session


def _timeouts(request: httpx.Request) -> aiohttp.ClientTimeout:
    given = request.extensions.get("timeout", {})
    return aiohttp.ClientTimeout(total=None, sock_connect=given.get("connect"), sock_read=given.get("read"))


def _told(error: Exception) -> str:
    return str(error) or type(error).__name__
