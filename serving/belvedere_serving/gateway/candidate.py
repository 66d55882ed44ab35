"""Asks a replica directly, not through Envoy, so that nothing of it shows in what Envoy measures of its version."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import aiohttp
import grpc
from yarl import URL

from belvedere_platform.errors import Unavailable
from belvedere_platform.protocol import InferResponse
from belvedere_serving.gateway.comparison import MAX_BODY_BYTES, Replay, grpc_answer, http_answer
from belvedere_serving.gateway.world import Replica

_LIMITS = [("grpc.max_receive_message_length", MAX_BODY_BYTES), ("grpc.max_send_message_length", MAX_BODY_BYTES)]


class CandidateClient:
    """Sends replays to replicas; keeps connections while a replica is there."""

    def __init__(self) -> None:
        self._session = aiohttp.ClientSession(auto_decompress=False)
        self._channels: dict[str, Any] = {}

    async def ask(self, replica: Replica, protocol: str, replay: Replay, timeout_seconds: float) -> InferResponse:
        """Return the replica's answer. Raises Unavailable when it fails or is late, Unreadable when it is not V2."""
        if protocol == "grpc":
            return await self._ask_grpc(replica, replay, timeout_seconds)
        return await self._ask_http(replica, replay, timeout_seconds)

    async def keep_only(self, replicas: Iterable[Replica]) -> None:
        """Close connections to replicas that are gone."""
        targets = {_target(replica) for replica in replicas}
        for target in [target for target in self._channels if target not in targets]:
            await self._channels.pop(target).close()

    async def close(self) -> None:
        """Close all connections."""
        await self.keep_only(())
        await self._session.close()

    async def _ask_http(self, replica: Replica, replay: Replay, timeout_seconds: float) -> InferResponse:
        address = f"http://{replica.address}:{replica.http_port}{replica.http_path_prefix}{replay.path}"
        headers = {**replay.headers, "accept-encoding": "identity"}
        timeout = aiohttp.ClientTimeout(total=timeout_seconds)
        try:
            async with self._session.post(
                URL(address, encoded=True), data=replay.body, headers=headers, timeout=timeout
            ) as answer:
                body = await answer.read()
                if answer.status != 200:
                    raise Unavailable(f"{address} answered {answer.status}")
                return http_answer({name.lower(): value for name, value in answer.headers.items()}, body)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise Unavailable(f"{address}: {error or type(error).__name__}") from error

    async def _ask_grpc(self, replica: Replica, replay: Replay, timeout_seconds: float) -> InferResponse:
        target = _target(replica)
        if target not in self._channels:
            self._channels[target] = grpc.aio.insecure_channel(target, options=_LIMITS)
        call = self._channels[target].unary_unary(replay.path)(replay.body, timeout=timeout_seconds)
        try:
            raw = await call
        except grpc.aio.AioRpcError as error:
            raise Unavailable(f"{target}: {error.code().name} {error.details()}") from error
        except asyncio.CancelledError as error:
            asking = asyncio.current_task()
            if asking is not None and asking.cancelling():
                raise
            # It was not us: the connection was closed below the call.
            raise Unavailable(f"{target} is gone") from error
        return grpc_answer(raw)


def _target(replica: Replica) -> str:
    return f"{replica.address}:{replica.grpc_port}"
