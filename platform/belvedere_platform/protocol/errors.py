"""How a V2 request can fail, and what HTTP and gRPC call each way."""

from __future__ import annotations

from enum import Enum

from belvedere_platform.errors import BelvedereError


class Reason(Enum):
    """Why a request failed. The name is the gRPC status code, the value the HTTP status."""

    INVALID_ARGUMENT = 400
    NOT_FOUND = 404
    RESOURCE_EXHAUSTED = 429
    CANCELLED = 499
    INTERNAL = 500
    UNIMPLEMENTED = 501
    UNAVAILABLE = 503
    DEADLINE_EXCEEDED = 504

    @property
    def http_status(self) -> int:
        """Return the HTTP status code."""
        return self.value

    @property
    def is_client_fault(self) -> bool:
        """Whether the request, not the server, must change."""
        return self in (Reason.INVALID_ARGUMENT, Reason.NOT_FOUND, Reason.CANCELLED, Reason.UNIMPLEMENTED)


class V2Error(BelvedereError):
    """A request that gets no answer; the message is for the client."""

    def __init__(self, reason: Reason, message: str, *, retry_after_seconds: int | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.retry_after_seconds = retry_after_seconds


def invalid(message: str) -> V2Error:
    """Return the error of a request that can never succeed as it is."""
    return V2Error(Reason.INVALID_ARGUMENT, message)
