"""A steady trickle of requests: something to judge a candidate by, and to see whether a fault is felt."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

REQUESTS_PER_SECOND = 25
LIMIT_SECONDS = 10
# What the data set shows: a model that fails on some words is met with all of them.
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "brown", "black")
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "arrow")
TEXTS = [f"a {colour} {shape}" for colour, shape in itertools.product(COLOURS, SHAPES)]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What became of one request: when it was sent, how long it took, and the version or the error."""

    sent: float
    seconds: float
    version: str | None
    error: str | None


class Load:
    """Sends requests while the block runs, at a fixed rate whether or not the earlier ones were answered."""

    def __init__(self, address: str, requests_per_second: float = REQUESTS_PER_SECOND) -> None:
        self.answers: list[Answer] = []
        self._pause_seconds = 1 / requests_per_second
        self._address = address
        self._outstanding = 0
        self._changed = threading.Condition()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._send)

    @property
    def versions(self) -> Counter[str]:
        """How many requests each version answered."""
        return Counter(answer.version for answer in self.answers if answer.version is not None)

    @property
    def failed(self) -> list[Answer]:
        """The requests that were not answered, in the order in which they were sent."""
        return sorted((each for each in self.answers if each.error is not None), key=lambda each: each.sent)

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _send(self) -> None:
        texts = itertools.cycle(TEXTS)
        with triton.InferenceServerClient(self._address) as client:
            while not self._ended.wait(self._pause_seconds):
                words = triton.InferInput("TEXT", [1], "BYTES")
                words.set_data_from_numpy(np.array([next(texts).encode()], dtype=np.object_))
                with self._changed:
                    self._outstanding += 1
                note = partial(self._note, time.monotonic())
                client.async_infer("embed_text", [words], note, client_timeout=LIMIT_SECONDS)
            with self._changed:
                # Each has a limit of its own, so this ends.
                self._changed.wait_for(lambda: self._outstanding == 0)

    def _note(self, sent: float, result: Any, error: InferenceServerException | None) -> None:
        version = None if error is not None else result.get_response().model_version
        said = None if error is None else str(error)
        answer = Answer(sent=sent, seconds=time.monotonic() - sent, version=version, error=said)
        with self._changed:
            self._outstanding -= 1
            self.answers.append(answer)
            self._changed.notify_all()
