"""Embeds many texts or pictures through a V2 server, with Triton's client, over HTTP or gRPC."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt

from belvedere_platform.errors import BelvedereError, InvalidInput, NotFound, Unavailable
from belvedere_platform.protocol import BYTES, EMBED_IMAGE, EMBED_TEXT, EMBEDDING, INPUT_OF

SERVICE_HEADER = "belvedere-service"
_WRONG = {"400", "StatusCode.INVALID_ARGUMENT"}
_MISSING = {"404", "StatusCode.NOT_FOUND", "StatusCode.UNIMPLEMENTED"}
_FAILED = {"500", "StatusCode.INTERNAL"}


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """Vectors of unit length, a row an input, and the versions that answered."""

    vectors: npt.NDArray[np.float32]
    versions: tuple[str, ...]


class V2Client:
    """A connection to a V2 server or gateway. Use it in one thread, as a context manager."""

    def __init__(
        self, url: str, *, grpc: bool = False, service: str | None = None, batch: int = 16, timeout_seconds: float = 30
    ) -> None:
        """`url`: http://HOST:PORT[/PREFIX], also for gRPC. `service`: NAMESPACE/NAME, where a gateway serves several."""
        address = _address(url, grpc)
        self._url, self._batch, self._timeout_seconds = url, batch, timeout_seconds
        self._grpc = grpc
        self._headers = {SERVICE_HEADER: service} if service else None
        self._library: Any
        if grpc:
            import tritonclient.grpc as triton_grpc

            self._library = triton_grpc
            self._client: Any = triton_grpc.InferenceServerClient(address)
        else:
            import tritonclient.http as triton_http

            self._library = triton_http
            self._client = triton_http.InferenceServerClient(
                address, connection_timeout=timeout_seconds, network_timeout=timeout_seconds
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def embed_texts(self, texts: Sequence[str]) -> Embedded:
        """Return the embeddings of texts."""
        return self._embed(EMBED_TEXT, [text.encode() for text in texts])

    def embed_images(self, pictures: Sequence[bytes]) -> Embedded:
        """Return the embeddings of pictures, each an encoded PNG, JPEG or WebP."""
        return self._embed(EMBED_IMAGE, list(pictures))

    def _embed(self, model: str, values: list[bytes]) -> Embedded:
        if not values:
            raise InvalidInput(f"nothing to embed: give {INPUT_OF[model].lower()}s")
        parts, versions = [], set()
        for start in range(0, len(values), self._batch):
            result = self._infer(model, values[start : start + self._batch])
            parts.append(result.as_numpy(EMBEDDING))
            answer = result.get_response()
            versions.add(answer.get("model_version", "") if isinstance(answer, dict) else answer.model_version)
        return Embedded(vectors=np.concatenate(parts), versions=tuple(sorted(versions)))

    def _infer(self, model: str, values: list[bytes]) -> Any:
        from tritonclient.utils import InferenceServerException

        tensor = self._library.InferInput(INPUT_OF[model], [len(values)], BYTES)
        tensor.set_data_from_numpy(np.array(values, dtype=np.object_))
        options: dict[str, Any] = {"headers": self._headers}
        if self._grpc:
            options["client_timeout"] = self._timeout_seconds
        try:
            return self._client.infer(model, [tensor], **options)
        except InferenceServerException as error:
            raise _error(error, self._url) from error
        except (OSError, TimeoutError) as error:
            raise Unavailable(
                f"{self._url} does not answer: {error}; `belvedere get msvc` shows what is served"
            ) from error


def _address(url: str, grpc: bool) -> str:
    try:
        parts = urlsplit(url if "//" in url else f"//{url}")
        known = parts.scheme in ("", "http", "grpc") and bool(parts.netloc) and parts.port != 0
    except ValueError:  # brackets that do not close, a port that is none
        known = False
    if not known:
        raise InvalidInput(
            f"--url is {url!r}; it must be http://HOST:PORT, with a path in front of /v2 if there is one"
        )
    path = parts.path.rstrip("/")
    if grpc and path:
        raise InvalidInput(f"--url is {url!r}; gRPC has no path prefix: name the service instead")
    return parts.netloc + path


def _error(error: Any, url: str) -> BelvedereError:
    status, message = str(error.status()), str(error.message())
    if status in _WRONG:
        return InvalidInput(message)
    if status in _MISSING:
        return NotFound(f"{url}: {message}")
    if status in _FAILED:
        return BelvedereError(f"{url} failed: {message}")
    return Unavailable(f"{url} does not answer: {message} ({status}); `belvedere get msvc` shows what is served")
