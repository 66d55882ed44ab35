"""uvicorn's HTTP/1.1 with the door before it: a request is refused as soon as its head is there.

Through ASGI a refusal costs a parsed head, a task, two messages and two writes, several times what it is worth; here it is one look at the
bytes and one write. The connection stays open, and what comes of a refused body is read and forgotten. Only a head that is plain is looked at:
the parser never sees a refused request, so where both might disagree on where it ends it is the parser's.
"""

from __future__ import annotations

import re
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from belvedere_serving.server.door import DEADLINE_HEADER, Door

_HEAD = re.compile(rb"POST ([!-$&-~]+) HTTP/1\.1((?:\r\n[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t -~\x80-\xff]*)+)\r\n\r\n")
_TELLING = re.compile(
    rb"\r\n(content-length|connection|transfer-encoding|expect|upgrade|%b):[ \t]*([^\r]*)" % re.escape(DEADLINE_HEADER)
)
"""The headers that have a say in where a request ends, or in how long it may take, in lower case."""
_MOST_DIGITS = 15


class DoorProtocol(HttpToolsProtocol):
    """One connection. Without a door in front of the application it is uvicorn's own."""

    def __init__(self, config: Any, *arguments: Any, **options: Any) -> None:
        super().__init__(config, *arguments, **options)
        self._door = door_of(self.app)
        self._within = False
        self._to_forget = 0
        self._heard_at = 0.0

    def data_received(self, data: bytes) -> None:
        """Forget what is left of refused bodies, refuse whom the door does not let in, and give all else to the parser."""
        while True:
            if self._to_forget:
                forgotten = min(self._to_forget, len(data))
                self._to_forget -= forgotten
                self._heard_at = self.loop.time()
                data = data[forgotten:]
            if not data:
                return
            size = self._refuse(data)
            if not size:
                break
            self._to_forget = size
        super().data_received(data)

    def _refuse(self, data: bytes) -> int:
        """Answer a request that is not let in, and return its bytes; 0 where one is let in, or is not at its plain beginning."""
        if self._within or self._door is None or (self.cycle is not None and not self.cycle.response_complete):
            return 0
        head = _HEAD.match(data)
        if head is None or (plain := plain_head(head[2].lower())) is None:
            return 0
        size, told = plain
        answer = self._door.refused(head[1], told)
        if answer is None:
            return 0
        self.transport.write(answer)
        self.server_state.total_requests += 1
        self._heard_at = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self._hang_up_in(self.timeout_keep_alive)
        return head.end() + size

    def on_message_begin(self) -> None:
        """Note that the parser has begun with a request."""
        self._within = True
        super().on_message_begin()

    def on_message_complete(self) -> None:
        """Note that the parser is through with a request."""
        self._within = False
        super().on_message_complete()

    def timeout_keep_alive_handler(self) -> None:
        """Hang up on who has been silent for as long; to move the timer each time would cost as much as to refuse."""
        left = self._heard_at + self.timeout_keep_alive - self.loop.time()
        if left <= 0:
            super().timeout_keep_alive_handler()
        else:
            self._hang_up_in(left)

    def _hang_up_in(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)


def plain_head(headers: bytes) -> tuple[int, bytes | None] | None:
    """Return the size of a body, and the deadline's header, by its head's lines in lower case.

    None where anything but one content-length has a say in the size.
    """
    digits: bytes | None = None
    told: bytes | None = None
    kept = False
    for name, value in _TELLING.findall(headers):
        if name == b"content-length" and digits is None:
            digits = value.rstrip()
        elif name == DEADLINE_HEADER:
            told = value.rstrip() if told is None else told
        elif name == b"connection" and not kept and value.rstrip() == b"keep-alive":
            kept = True
        else:
            return None
    if digits is None or not digits.isdigit() or len(digits) > _MOST_DIGITS:
        return None
    return int(digits), told


def door_of(app: Any) -> Door | None:
    """Return the door in front of an application, behind what uvicorn puts before it."""
    while app is not None and not isinstance(app, Door):
        app = getattr(app, "app", None)
    return app
