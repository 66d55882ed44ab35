"""A steady trickle of requests, so that there is something to judge a candidate by."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from types import TracebackType

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

REQUESTS_PER_SECOND = 15
# What the data set shows: a model that fails on some words is met with all of them.
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "brown", "black")
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "arrow")
TEXTS = [f"a {colour} {shape}" for colour, shape in itertools.product(COLOURS, SHAPES)]


class Load:
    """Sends requests while the block runs; afterwards says who answered them and how many failed."""

    def __init__(self, address: str) -> None:
        self.versions: Counter[str] = Counter()
        self.errors = 0
        self._address = address
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._send)

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _send(self) -> None:
        words = triton.InferInput("TEXT", [1], "BYTES")
        texts = itertools.cycle(TEXTS)
        with triton.InferenceServerClient(self._address) as client:
            while not self._ended.wait(1 / REQUESTS_PER_SECOND):
                words.set_data_from_numpy(np.array([next(texts).encode()], dtype=np.object_))
                try:
                    answer = client.infer("embed_text", [words], client_timeout=10)
                except InferenceServerException:
                    self.errors += 1
                else:
                    self.versions[answer.get_response().model_version] += 1
