"""Gather embeddings from all workers so that gradients find their way back."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor
from torch.nn import functional

# B pairs of this worker, G pairs of all workers, E embedding


class _Gather(torch.autograd.Function):
    """Concatenate over ranks; backward adds what every rank wants of our rows.

    With a mean over ranks afterwards (as DistributedDataParallel takes), this gives the gradient of the global batch.
    """

    @staticmethod
    def forward(context: Any, own_BE: Tensor, counts: tuple[int, ...]) -> Tensor:
        context.counts = counts
        # Workers exchange pieces of one size: short ones are filled up, and cut again.
        padded_BE = functional.pad(own_BE, (0, 0, 0, max(counts) - len(own_BE)))
        parts = [torch.empty_like(padded_BE) for _ in counts]
        distributed.all_gather(parts, padded_BE.contiguous())
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total_GE = gradients[0].contiguous().clone()
        distributed.all_reduce(total_GE)
        rank = distributed.get_rank()
        first = sum(context.counts[:rank])
        return total_GE[first : first + context.counts[rank]], None


def gather(own_BE: Tensor, counts: tuple[int, ...] | None = None) -> Tensor:
    """Return the rows of all workers, in the order of their rank. Alone: the rows as they are.

    counts: how many rows each worker has, where not all have the same number.
    """
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return own_BE
    gathered: Tensor = _Gather.apply(own_BE, counts or (len(own_BE),) * distributed.get_world_size())
    return gathered
