"""What is made of a picture is kept by its content, so that several questions about one picture look at it once."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from belvedere_platform.protocol import Reason, V2Error
from belvedere_serving.engines.preprocess import ImagePreprocessor
from belvedere_serving.server.batching import Batcher
from belvedere_serving.server.timing import Timing

Array = npt.NDArray[Any]
Key = tuple[str, bytes]


class FeatureCache:
    """Arrays by content, at most so many bytes of them; the one not asked for longest goes first. Lives in one event loop."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._kept: OrderedDict[Key, Array] = OrderedDict()
        self._coming: dict[Key, asyncio.Task[Array]] = {}
        self.num_bytes = 0
        self.num_made = 0

    async def get(self, key: Key, make: Callable[[], Awaitable[Array]]) -> Array:
        """Return what is kept, or make it: once, for all who wait for it, even if the first of them goes away."""
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        if key not in self._coming:
            task = self._coming[key] = asyncio.ensure_future(self._make(key, make))
            # All who wait may have gone by the time it fails.
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return await asyncio.shield(self._coming[key])

    async def _make(self, key: Key, make: Callable[[], Awaitable[Array]]) -> Array:
        try:
            array = await make()
        finally:
            del self._coming[key]
        self.num_made += 1
        if array.nbytes <= self._max_bytes:
            self._kept[key] = array
            self.num_bytes += array.nbytes
        while self.num_bytes > self._max_bytes:
            self.num_bytes -= self._kept.popitem(last=False)[1].nbytes
        return array

    async def close(self) -> None:
        """Stop making."""
        tasks = list(self._coming.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class PictureReader:
    """From encoded pictures to what the heads take: features, and what they leave for a decoder."""

    def __init__(
        self,
        preprocess: ImagePreprocessor,
        encode: Batcher,
        cache: FeatureCache,
        *,
        preparing: Executor,
        state: Batcher | None = None,
    ) -> None:
        """`encode`: pixels to features; `state`: features to the decoder's state, None where the model cannot write."""
        self._preprocess = preprocess
        self._encode = encode
        self._state = state
        self._preparing = preparing
        self.cache = cache

    async def features(self, elements: Sequence[bytes], deadline: float, timing: Timing) -> list[Array]:
        """Return the features [N, D] of each picture."""
        return await self._each(self._features, elements, deadline, timing)

    async def states(self, elements: Sequence[bytes], deadline: float, timing: Timing) -> list[Array]:
        """Return what each picture leaves for every text, [M, F, 2, D]."""
        return await self._each(self._picture, elements, deadline, timing)

    async def pixels(self, index: int, element: bytes) -> Array:
        """Return the pixels [3, S, S] of a picture."""
        prepare = partial(self._preprocess, [element], first=index)
        row: Array = (await asyncio.get_running_loop().run_in_executor(self._preparing, prepare))[0]
        return row

    def blank(self) -> Array:
        """Return the pixels [3, S, S] of a white picture."""
        row: Array = self._preprocess.blank()[0]
        return row

    async def encode(self, pixels: Array, deadline: float, timing: Timing) -> Array:
        """Return the features [n, N, D] of pixels that nobody will ask for again."""
        return await self._encode.submit(pixels, deadline, timing)

    async def _each(
        self,
        read: Callable[[int, bytes, float, Timing], Awaitable[Array]],
        elements: Sequence[bytes],
        deadline: float,
        timing: Timing,
    ) -> list[Array]:
        return list(await asyncio.gather(*(read(index, one, deadline, timing) for index, one in enumerate(elements))))

    async def _features(self, index: int, element: bytes, deadline: float, timing: Timing) -> Array:
        async def make() -> Array:
            with self._encode.coming():
                pixels = await self.pixels(index, element)
            row: Array = (await self._encode.submit(pixels[np.newaxis], deadline, timing))[0]
            return row

        return await self.cache.get(("features", digest(element)), make)

    async def _picture(self, index: int, element: bytes, deadline: float, timing: Timing) -> Array:
        state = self._state
        assert state is not None, "asked of a model that cannot write"

        async def make() -> Array:
            features = await self._features(index, element, deadline, timing)
            row: Array = (await state.submit(features[np.newaxis], deadline, timing))[0]
            return row

        return await self.cache.get(("picture", digest(element)), make)

    @property
    def running_since(self) -> float | None:
        """Return when the run that goes on began."""
        return self._encode.running_since or (self._state.running_since if self._state else None)

    async def close(self) -> None:
        """End what works here."""
        await self.cache.close()
        await self._encode.close()
        if self._state is not None:
            await self._state.close()


def digest(element: bytes) -> bytes:
    """Return what names a picture by its content."""
    return hashlib.blake2b(element, digest_size=16).digest()


def in_time(deadline: float, now: float) -> None:
    """Raise DEADLINE_EXCEEDED for a request that came too late."""
    if deadline <= now:
        raise V2Error(Reason.DEADLINE_EXCEEDED, "the request's time was up when it arrived")
