"""Memory in blocks of one size: who has which, and what is free. Kwon et al. 2023 (arXiv:2309.06180), section 4.2."""

from __future__ import annotations

from collections.abc import Iterable


class BlockPool:
    """Hands out numbers of blocks. Those given back last are handed out first: they are still in the processor's cache."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))

    @property
    def num_free(self) -> int:
        """Return how many blocks nobody has."""
        return len(self._free)

    def take(self, count: int) -> list[int] | None:
        """Return so many blocks, or None when there are fewer: all or nothing."""
        if count > len(self._free):
            return None
        return [self._free.pop() for _ in range(count)]

    def give_back(self, blocks: Iterable[int]) -> None:
        """Free blocks that were taken."""
        self._free.extend(blocks)
        assert len(self._free) <= self.num_blocks, "a block was given back twice"


def blocks_for(num_tokens: int, block_size: int) -> int:
    """Return how many blocks hold so many tokens."""
    return -(-num_tokens // block_size)
