"""Gather embeddings from all workers so that gradients find their way back."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor

# B pairs of this worker, G pairs of all workers, E embedding


class _Gather(torch.autograd.Function):
    """Concatenate over ranks; backward adds what every rank wants of our rows.

    With a mean over ranks afterwards (as DistributedDataParallel takes), this gives the gradient of the global batch.
    """

    @staticmethod
    def forward(context: Any, own_BE: Tensor) -> Tensor:
        context.rows = len(own_BE)
        parts = [torch.empty_like(own_BE) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, own_BE.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        total_GE = gradients[0].contiguous().clone()
        distributed.all_reduce(total_GE)
        first = distributed.get_rank() * context.rows
        return total_GE[first : first + context.rows]


def gather(own_BE: Tensor) -> Tensor:
    """Return the rows of all workers, in the order of their rank; the same number on each. Alone: the rows as they are."""
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return own_BE
    gathered: Tensor = _Gather.apply(own_BE)
    return gathered
