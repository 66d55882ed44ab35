"""A short training of a finished model, to mend what compression broke or to teach a smaller one."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor, nn

from belvedere_training.data.loader import Batch
from belvedere_training.model.dual import DualStream
from belvedere_training.objectives.contrastive import alike, contrastive_loss
from belvedere_training.optimizer import Optimizers, schedule

# B pairs, E embedding

Loss = Callable[[Tensor, Tensor, Tensor, Batch], Tensor]
_CLIP = 1.0


def contrast(image_BE: Tensor, text_BE: Tensor, scale: Tensor, batch: Batch) -> Tensor:
    """Return the contrastive loss of a batch of one worker."""
    return contrastive_loss(image_BE, text_BE, scale, same_GG=alike(batch.pairs.concepts, batch.pairs.texts))


def tune(
    model: DualStream,
    batches: Iterable[Batch],
    *,
    num_batches: int,
    learning_rate: float,
    loss: Loss = contrast,
    after_step: Callable[[], None] = lambda: None,
) -> list[float]:
    """Train on the batches and return the losses. `after_step` is called when the weights have moved."""
    optimizer = Optimizers(model, learning_rate=learning_rate, weight_decay=0.05)
    losses = []
    model.train()
    for number, batch in enumerate(batches):
        optimizer.set_rate(schedule(number + 1, num_batches // 10, num_batches))
        image_BE, text_BE, scale = model(batch.pixels_B3SS, batch.tokens_BT)
        value = loss(image_BE, text_BE, scale, batch)
        optimizer.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), _CLIP)
        optimizer.step()
        after_step()
        losses.append(value.item())
    model.eval()
    return losses
