"""One optimizer step: the pairs at a position, their views, the loss over all workers' pairs, the update."""

from __future__ import annotations

import math

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from belvedere_platform.errors import BelvedereError
from belvedere_training.config import RunConfig
from belvedere_training.data.corpus import Corpus
from belvedere_training.data.loader import Loader, mixed
from belvedere_training.model.vision_language import VisionLanguageModel
from belvedere_training.objectives.compatibility import compatibility_loss
from belvedere_training.objectives.contrastive import alike, contrastive_loss
from belvedere_training.objectives.gather import gather
from belvedere_training.optimizer import Optimizers, schedule
from belvedere_training.precision import Execution
from belvedere_training.world import World

# B pairs of this worker, G pairs of all workers, E embedding, S picture edge, T tokens

COMPATIBILITY_FACTOR = 5.0  # what a compatibilityWeight of 1 multiplies distances by (training/LOG.md)


class Diverged(BelvedereError):
    """The loss is no finite number any more."""


class Stepper:
    """Makes steps; holds nothing that changes but weights and optimizer."""

    def __init__(
        self,
        config: RunConfig,
        world: World,
        corpus: Corpus,
        tokenizer: Tokenizer,
        model: VisionLanguageModel,
        network: nn.Module,
        optimizer: Optimizers,
        execution: Execution,
        parent: VisionLanguageModel | None,
    ) -> None:
        self.setting = config.optimization
        self.compatibility_weight = config.initialize_from.compatibility_weight if config.initialize_from else 0.0
        self.world, self.corpus, self.tokenizer = world, corpus, tokenizer
        self.model, self.network, self.optimizer = model, network, optimizer
        self.execution, self.parent = execution, parent
        share = self.setting.batch_size // world.size
        self.first = world.rank * share
        rows = slice(self.first, self.first + share)
        self.loader = Loader(corpus, tokenizer, seed=self.setting.seed, batch_size=self.setting.batch_size, rows=rows)

    def step(self, position: int) -> float:
        """Train on the global batch at the position, and return this worker's loss."""
        setting = self.setting
        batch = self.loader.batch(position)
        pixels_B3SS, tokens_BT = batch.pixels_B3SS.to(self.world.device), batch.tokens_BT.to(self.world.device)
        torch.manual_seed(mixed(setting.seed, position, self.world.rank + 1))  # dropout, one stream a worker
        self.optimizer.set_rate(schedule(position + setting.batch_size, setting.warmup_pairs, setting.pairs))
        with self.execution.autocast(self.world.device):
            image_BE, text_BE, scale = self.network(pixels_B3SS, tokens_BT)
        loss = contrastive_loss(
            image_BE,
            text_BE,
            scale,
            all_image_GE=gather(image_BE),
            all_text_GE=gather(text_BE),
            same_GG=alike(batch.pairs.concepts, batch.pairs.texts).to(self.world.device),
            first=self.first,
            label_smoothing=setting.label_smoothing,
        )
        if self.parent is not None and self.compatibility_weight:
            loss = loss + self._compatibility(pixels_B3SS, tokens_BT, image_BE, text_BE)
        self._update(loss, position)
        return loss.item()

    def _compatibility(self, pixels_B3SS: Tensor, tokens_BT: Tensor, image_BE: Tensor, text_BE: Tensor) -> Tensor:
        """Return the weighted distance to what the frozen parent says of the same views."""
        assert self.parent is not None
        with torch.no_grad(), self.execution.autocast(self.world.device):
            parent_image_BE, parent_text_BE, _ = self.parent(pixels_B3SS, tokens_BT)
        distance = compatibility_loss(image_BE, parent_image_BE) + compatibility_loss(text_BE, parent_text_BE)
        return COMPATIBILITY_FACTOR * self.compatibility_weight * distance

    def _update(self, loss: Tensor, position: int) -> None:
        if not math.isfinite(loss.item()):
            raise Diverged(
                f"the loss is {loss.item()} after {position} pairs: lower optimization.learningRate "
                f"(now {self.setting.learning_rate:g}), lengthen optimization.warmupPairs, or set precision to fp32"
            )
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), self.setting.clip_norm)
        self.optimizer.step()
