"""Keys and values of the tokens written so far, in blocks: exact, or in 8 bits with a scale for each head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

# N blocks, S tokens of a block, T tokens, R sequences, P capacity in tokens, L layers, 2 key and value, D width, H heads

Array = npt.NDArray[Any]
Kept = Literal["fp32", "int8"]


class PagedCache:
    """The memory behind block tables. Rows are tokens, so that gathering a sequence is one indexing."""

    def __init__(
        self, *, num_blocks: int, block_size: int, layers: int, width: int, heads: int, kept: Kept = "fp32"
    ) -> None:
        self.block_size = block_size
        self._heads = heads
        shape = (num_blocks, block_size, layers, 2, width)
        self._data_NSL2D: Array = np.zeros(shape, np.int8 if kept == "int8" else np.float32)
        self._scale_NSL2H: Array | None = np.zeros((*shape[:-1], heads), np.float16) if kept == "int8" else None

    @staticmethod
    def bytes_a_token(*, layers: int, width: int, heads: int, kept: Kept) -> int:
        """Return what one token takes."""
        return layers * 2 * (width + 2 * heads if kept == "int8" else 4 * width)

    @property
    def nbytes(self) -> int:
        """Return what all blocks take."""
        return self._data_NSL2D.nbytes + (0 if self._scale_NSL2H is None else self._scale_NSL2H.nbytes)

    def write(self, table: Sequence[int], start: int, fresh_TL2D: Array) -> None:
        """Put the tokens from `start` on into their places."""
        if not np.isfinite(fresh_TL2D).all():
            # Attention gives what is behind a text's end no weight, but nothing times no number is no number:
            # a text that broke would spoil whoever gets its blocks next.
            fresh_TL2D = np.nan_to_num(fresh_TL2D, posinf=0, neginf=0)
        place_T = np.arange(start, start + len(fresh_TL2D))
        block_T, row_T = np.asarray(table)[place_T // self.block_size], place_T % self.block_size
        if self._scale_NSL2H is None:
            self._data_NSL2D[block_T, row_T] = fresh_TL2D
            return
        data, scale = quantized(fresh_TL2D, self._heads)
        self._data_NSL2D[block_T, row_T] = data
        self._scale_NSL2H[block_T, row_T] = scale

    def gather(self, tables: Sequence[Sequence[int]]) -> Array:
        """Return [R, P, L, 2, D] in fp32, as wide as the longest table needs. What is behind a sequence's end is anything."""
        most = max((len(table) for table in tables), default=0)
        if most == 0:
            return np.zeros((len(tables), 1, *self._data_NSL2D.shape[2:]), np.float32)
        index = np.zeros((len(tables), most), np.int64)
        for row, table in zip(index, tables, strict=True):
            row[: len(table)] = table
        data = self._data_NSL2D[index].reshape(len(tables), -1, *self._data_NSL2D.shape[2:])
        if self._scale_NSL2H is None:
            return data
        scale = self._scale_NSL2H[index].reshape(len(tables), -1, *self._scale_NSL2H.shape[2:])
        return restored(data, scale)


def quantized(values_XD: Array, heads: int) -> tuple[Array, Array]:
    """Return 8-bit numbers and the scales of each head, [..., D] and [..., H]: the largest value of a head becomes 127."""
    split = values_XD.reshape(*values_XD.shape[:-1], heads, -1)
    # The scale is rounded to half precision first, so that restoring divides by what was multiplied with.
    scale = np.maximum(np.abs(split).max(-1) / 127, np.finfo(np.float16).tiny).astype(np.float16)
    data = np.clip(np.rint(split / scale[..., None].astype(np.float32)), -127, 127).astype(np.int8)
    return data.reshape(values_XD.shape), scale


def restored(data_XD: Array, scale_XH: Array) -> Array:
    """Return what the 8-bit numbers stand for, in fp32."""
    split = data_XD.reshape(*data_XD.shape[:-1], scale_XH.shape[-1], -1)
    return (split * scale_XH[..., None].astype(np.float32)).reshape(data_XD.shape)
