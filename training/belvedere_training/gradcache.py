"""Contrast over a batch that does not fit: embed it in chunks, keep the gradient of the embeddings, embed again with it.

Gao et al. 2021 (arXiv:2101.06983), section 3.2. The gradient is that of the whole batch, dropout included: each chunk is
embedded with the same random state both times. Accumulating the chunks' own losses would not give it: their negatives differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

# B pairs of this worker, E embedding


class Embedded(NamedTuple):
    """What one chunk gives: embeddings, the factor on similarities, and a loss of the chunk's own (or None)."""

    image_BE: Tensor
    text_BE: Tensor
    scale: Tensor
    own_loss: Tensor | None = None


Embed = Callable[[slice, bool], Embedded]
"""(rows, last look) → the chunk. Losses of the chunk's own are only wanted at the last look."""


def chunks(count: int, size: int) -> list[slice]:
    """Return slices of at most this size over all rows."""
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def cached_backward(
    embed: Embed,
    loss_of: Callable[[Tensor, Tensor, Tensor], Tensor],
    rows: Sequence[slice],
    model: nn.Module,
    *,
    factor: float = 1.0,
    no_sync: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Tensor:
    """Backpropagate factor * loss_of(all images, all texts, scale) and the chunks' own losses; return the loss.

    A chunk's own loss weighs as much as its share of the rows. no_sync: the context in which workers do not yet
    exchange gradients; the last chunk's backward pass is outside of it.
    """
    device = next(model.parameters()).device
    states, parts = [], []
    with torch.no_grad(), still_statistics(model):
        for chunk in rows:
            states.append(_random_state(device))
            parts.append(embed(chunk, False))
    image_BE = torch.cat([part.image_BE for part in parts]).requires_grad_()
    text_BE = torch.cat([part.text_BE for part in parts]).requires_grad_()
    scale = parts[0].scale.clone().requires_grad_()
    loss = loss_of(image_BE, text_BE, scale)
    (factor * loss).backward()  # type: ignore[no-untyped-call]
    wanted = (image_BE.grad, text_BE.grad, scale.grad)
    total, after = loss.detach(), _random_state(device)
    for chunk, state in zip(rows, states, strict=True):
        _set_random_state(device, state)
        with no_sync() if chunk is not rows[-1] else nullcontext():
            part = embed(chunk, True)
            surrogate = _surrogate(part, wanted, chunk, last=chunk is rows[-1])
            if part.own_loss is not None:
                share = (chunk.stop - chunk.start) / len(image_BE)
                surrogate = surrogate + factor * share * part.own_loss
                total = total + share * part.own_loss.detach()
            surrogate.backward()  # type: ignore[no-untyped-call]
    _set_random_state(device, after)
    return total


def _surrogate(part: Embedded, wanted: tuple[Tensor | None, ...], chunk: slice, *, last: bool) -> Tensor:
    """Return a number whose gradient in the chunk's weights is that of the loss."""
    image_BE, text_BE, scale = wanted
    assert image_BE is not None
    assert text_BE is not None
    assert scale is not None
    pulled = (part.image_BE * image_BE[chunk]).sum() + (part.text_BE * text_BE[chunk]).sum()
    # The factor is the same for all chunks, so its gradient passes once; the others keep it in the graph.
    return pulled + part.scale * (scale if last else 0 * scale)


@contextmanager
def still_statistics(model: nn.Module) -> Iterator[None]:
    """Keep running statistics as they are: the first look at a chunk must not count twice."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _set_random_state(device: torch.device, state: tuple[Tensor, Tensor | None]) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
