"""One optimizer step: the pairs at a position, their views, the loss over all workers' pairs, the update."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
import torch.distributed as distributed
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from belvedere_platform.errors import BelvedereError
from belvedere_training.config import RunConfig
from belvedere_training.data.corpus import Corpus
from belvedere_training.data.loader import Loader, Said, mixed
from belvedere_training.depth import unfreeze
from belvedere_training.gradcache import Embedded, cached_backward, chunks
from belvedere_training.model.resolution import THRESHOLDS, ResolutionRouter, steps_to
from belvedere_training.model.spatial import enter, stage_at
from belvedere_training.model.text import PAD_ID
from belvedere_training.model.vision_language import VisionLanguageModel
from belvedere_training.objectives.compatibility import compatibility_loss
from belvedere_training.objectives.contrastive import alike, contrastive_loss
from belvedere_training.objectives.gather import gather
from belvedere_training.objectives.multitask import MultiTask, Outputs, drawn, needs_words
from belvedere_training.objectives.teacher import Teacher, distilled_loss
from belvedere_training.optimizer import schedule
from belvedere_training.precision import Execution
from belvedere_training.sharding import complete_gradients, gathered
from belvedere_training.split import Stopwatch, rebalanced, shares
from belvedere_training.update import Update
from belvedere_training.world import World, everybodys, mean_over_workers

# B pairs of this worker, G pairs of all workers, E embedding, S picture edge, T tokens, K texts of each picture

COMPATIBILITY_FACTOR = 5.0  # what a compatibilityWeight of 1 multiplies distances by (training/LOG.md)
_RAMP = 0.1  # of the budget, over which the teacher is given its full say (Li et al. 2021, section 4)


class Diverged(BelvedereError):
    """The loss is no finite number any more."""


class View(NamedTuple):
    """This worker's part of a global batch.

    same: for each text of a picture, [G, G], which pairs of all workers are no negatives of each other. further: the tokens
    [B, T] of the texts after the first.
    """

    position: int
    pixels_B3SS: Tensor
    tokens_BT: Tensor
    said: Said
    same: tuple[Tensor, ...]
    further: tuple[Tensor, ...]
    attributes: Mapping[str, Tensor] = {}
    resolutions: tuple[int, ...] | None = None


class Stepper:
    """Makes steps; holds nothing that changes but weights, optimizer and teacher."""

    def __init__(
        self,
        config: RunConfig,
        world: World,
        corpus: Corpus,
        tokenizer: Tokenizer,
        module: nn.Module,
        update: Update,
        execution: Execution,
        *,
        parent: VisionLanguageModel | None = None,
        teacher: Teacher | None = None,
    ) -> None:
        self.setting, self.objectives = config.optimization, config.objectives
        self.compatibility_weight = config.initialize_from.compatibility_weight if config.initialize_from else 0.0
        self.world, self.corpus, self.tokenizer = world, corpus, tokenizer
        self.module, self.update, self.execution = module, update, execution
        self.parent, self.teacher = parent, teacher
        inner = module.model if isinstance(module, MultiTask) else module
        assert isinstance(inner, VisionLanguageModel)
        self.model = inner
        self.sharded = isinstance(module, FSDPModule)
        self.network = self._distributed()
        self.stopwatch = Stopwatch(self.module)
        self.counts = shares(self.setting.batch_size, [1.0] * world.size)
        self.loader = Loader(
            corpus,
            tokenizer,
            seed=self.setting.seed,
            batch_size=self.setting.batch_size,
            rows=slice(0, 0),
            normalization=self.model.config.normalization,
            attributes=self.model.config.parts.attributes if self.objectives.disentangle else {},
            router=self._router(),
            augmentation=config.data.augmentation,
            texts=config.data.texts,
            texts_each=self.setting.texts_per_picture,
            said_each=self.setting.questions_per_picture,
            apart=needs_words(self.objectives),
        )
        self.share_out(self.counts)
        self.told: dict[str, dict[str, float]] = {}

    def share_out(self, counts: tuple[int, ...]) -> None:
        """Give each worker so many rows of every batch from now on."""
        self.counts = counts
        self.first = sum(counts[: self.world.rank])
        self.loader.take(slice(self.first, self.first + counts[self.world.rank]))
        # Workers' gradients are averaged: a worker with more rows than an even share counts for more.
        self.weight = counts[self.world.rank] * self.world.size / self.setting.batch_size

    def balance(self) -> None:
        """Share out anew by how long each worker computed since the last time. Every rank must call it."""
        seconds = everybodys(self.stopwatch.take(), self.world)
        counts = rebalanced(self.counts, seconds)
        if counts != self.counts:
            self.share_out(counts)

    def step(self, position: int) -> float:
        """Train on the global batch at the position, and return this worker's loss."""
        setting = self.setting
        view = self._view(position)
        torch.manual_seed(mixed(setting.seed, position, self.world.rank + 1))  # dropout, one stream a worker
        if setting.unfreeze_every_pairs and unfreeze(self.model, position, setting.unfreeze_every_pairs):
            self.network = self._distributed()  # it exchanges the gradients of weights that learn
        if setting.resolution == "Progressive" and enter(self.model.vision, stage_at(position, setting.pairs)):
            self.network = self._distributed()
        self.update.optimizer.set_rate(schedule(position + setting.batch_size, setting.warmup_pairs, setting.pairs))
        terms = drawn(self.objectives, setting.seed, position)
        self.told = {}
        if view.resolutions:
            shown = Counter(view.resolutions)
            self.told["resolutions"] = {str(edge): shown[edge] / len(view.resolutions) for edge in sorted(shown)}
        cached = 0 < setting.chunk_size < len(view.tokens_BT)
        loss = self._in_chunks(view, terms) if cached else self._at_once(view, terms)
        if self.sharded:
            complete_gradients(self.module, fill=isinstance(self.module, MultiTask))
        self.told["gradient_norms"] = self.update.apply()
        if self.teacher is not None:
            self.teacher.follow(self.model)
        return loss

    def look(self, position: int, rows: int) -> None:
        """Make the forward pass of the first rows at a position and learn nothing from it: what a pass costs is counted so."""
        view, was_training = self._view(position), self.module.training
        self.module.eval()
        self._embed(view, slice(0, rows), drawn(self.objectives, self.setting.seed, position))
        if self.teacher is not None:
            self.teacher.embed(view.pixels_B3SS[:rows], view.tokens_BT[:rows])
        self.module.train(was_training)

    def agree_on_statistics(self) -> None:
        """Take rank 0's running statistics, as the next step would: parts of a checkpoint come from all ranks."""
        if self.world.size > 1:
            for buffer in self.model.buffers():
                distributed.broadcast(buffer, src=0)

    def whole_model(self) -> VisionLanguageModel | None:
        """Return the model with all its weights on rank 0, None elsewhere where weights are in shares. Every rank must call it."""
        if not self.sharded:
            return self.model
        weights = gathered(self.model.state_dict(), keep=self.world.rank == 0)
        if self.world.rank != 0:
            return None
        model = VisionLanguageModel(self.model.config)
        model.load_state_dict(weights)
        return model.to(self.world.device).train()

    def _at_once(self, view: View, terms: tuple[str, ...]) -> float:
        outputs = self._embed(view, slice(0, len(view.tokens_BT)), terms)
        loss = self._contrast(view, outputs.image_BE, outputs.text_BE, outputs.scale)
        if outputs.losses:
            loss = loss + self._weighed(outputs.losses)
        value = self._checked(loss, view)
        (self.update.factor() * self.weight * loss).backward()  # type: ignore[no-untyped-call]
        return value

    def _in_chunks(self, view: View, terms: tuple[str, ...]) -> float:
        """The same gradient with the memory of one chunk; other objectives take the chunk as their batch."""

        def embed(rows: slice, last: bool) -> Embedded:
            image_BE, text_BE, scale, losses = self._embed(view, rows, terms if last else ())
            return Embedded(image_BE, text_BE, scale, self._weighed(losses) if losses else None)

        def loss_of(image_BE: Tensor, text_BE: Tensor, scale: Tensor) -> Tensor:
            return self._contrast(view, image_BE, text_BE, scale)

        # In shares, each chunk's gradients are summed over the workers at once: kept until the last they would be whole.
        network = self.network
        no_sync = network.no_sync if isinstance(network, DistributedDataParallel) else nullcontext
        rows = chunks(len(view.tokens_BT), self.setting.chunk_size)
        factor = self.update.factor() * self.weight
        return self._checked(cached_backward(embed, loss_of, rows, self.model, factor=factor, no_sync=no_sync), view)

    def _view(self, position: int) -> View:
        batch, device = self.loader.batch(position), self.world.device
        pixels_B3SS = batch.pixels_B3SS
        if position < self.setting.coarse_share * self.setting.pairs:
            pixels_B3SS = functional.avg_pool2d(pixels_B3SS, 2)
        same = tuple(alike(batch.pairs.concepts, texts).to(device) for texts in batch.pairs.all_texts())
        further = tuple(tokens_BT.to(device) for tokens_BT in batch.further)
        return View(
            position,
            pixels_B3SS.to(device),
            batch.tokens_BT.to(device),
            batch.said.to(device),
            same,
            further,
            {name: value_B.to(device) for name, value_B in batch.attributes.items()},
            self._resolutions(position, len(batch.tokens_BT))
            if self.setting.resolution == "Progressive"
            else batch.resolutions,
        )

    def _resolutions(self, position: int, rows: int) -> tuple[int, ...] | None:
        """Return the one resolution of the step, drawn where everything learns together; None: the whole."""
        if stage_at(position, self.setting.pairs) != "joint":
            return None
        vision = self.model.config.vision
        drawn_from = random.Random(f"{self.setting.seed}/{position}/resolution")
        return (drawn_from.choice(steps_to(vision.image_size, vision.stride)),) * rows

    def _router(self) -> ResolutionRouter | None:
        vision = self.model.config.vision
        if self.setting.resolution != "ByEntropy":
            return None
        return ResolutionRouter(thresholds=THRESHOLDS, resolutions=steps_to(vision.image_size, vision.stride))

    def _embed(self, view: View, rows: slice, terms: tuple[str, ...]) -> Outputs:
        """Return embeddings and the losses of the terms for these rows of this worker; several texts give text_BKE."""
        pixels_B3SS, tokens_BT = view.pixels_B3SS[rows], view.tokens_BT[rows]
        seen_at = view.resolutions and view.resolutions[rows]
        with self.execution.autocast(self.world.device):
            if not isinstance(self.module, MultiTask):
                texts = [tokens_BT, *(other_BT[rows] for other_BT in view.further)]
                image_BE, text_BE, scale = self.network(pixels_B3SS, stacked(texts), seen_at)
                if view.further:
                    text_BE = text_BE.unflatten(0, (len(texts), -1)).transpose(0, 1)
                return Outputs(image_BE, text_BE, scale, {})
            own = slice(self.first + rows.start, self.first + rows.stop)
            seed = mixed(self.setting.seed, view.position, own.start, 1)
            generator = torch.Generator().manual_seed(seed)
            outputs: Outputs = self.network(
                pixels_B3SS,
                tokens_BT,
                view.said.rows(rows),
                view.same[0][own, own],
                terms,
                generator,
                {name: value_B[rows] for name, value_B in view.attributes.items()},
                seen_at,
            )
            return outputs

    def _contrast(self, view: View, image_BE: Tensor, text_BE: Tensor, scale: Tensor) -> Tensor:
        """Return the loss of the embeddings: contrast with all workers' pairs, and nearness to the parent."""
        if self.teacher is not None:
            with self.execution.autocast(self.world.device):
                taught = self.teacher.embed(view.pixels_B3SS, view.tokens_BT)
            alpha = self.objectives.distillation * min(1.0, view.position / (_RAMP * self.setting.pairs))
            loss = distilled_loss((image_BE, text_BE), taught, self.teacher, scale, self.first, alpha, self.counts)
        else:
            loss = self._contrast_of_texts(view, image_BE, text_BE, scale)
            text_BE = text_BE[:, 0] if view.further else text_BE
        if self.parent is not None and self.compatibility_weight:
            loss = loss + self._compatibility(view, image_BE, text_BE)
        return loss

    def _contrast_of_texts(self, view: View, image_BE: Tensor, text_BE: Tensor, scale: Tensor) -> Tensor:
        """Return the mean over the pictures' first texts, their second ones, and so on: each is a batch with the same pictures."""
        all_image_GE = gather(image_BE, self.counts)
        losses = [
            contrastive_loss(
                image_BE,
                own_BE,
                scale,
                all_image_GE=all_image_GE,
                all_text_GE=gather(own_BE, self.counts),
                same_GG=same_GG,
                first=self.first,
                label_smoothing=self.setting.label_smoothing,
            )
            for own_BE, same_GG in zip(text_BE.unbind(1) if view.further else (text_BE,), view.same, strict=True)
        ]
        return losses[0] if len(losses) == 1 else torch.stack(losses).mean()

    def _compatibility(self, view: View, image_BE: Tensor, text_BE: Tensor) -> Tensor:
        """Return the weighted distance to what the frozen parent says of the same views."""
        assert self.parent is not None
        with torch.no_grad(), self.execution.autocast(self.world.device):
            parent_image_BE, parent_text_BE, _ = self.parent(view.pixels_B3SS, view.tokens_BT)
        distance = compatibility_loss(image_BE, parent_image_BE) + compatibility_loss(text_BE, parent_text_BE)
        return COMPATIBILITY_FACTOR * self.compatibility_weight * distance

    def _weighed(self, losses: dict[str, Tensor]) -> Tensor:
        """Return the weighted sum, and remember each term."""
        self.told["losses"] = {name: loss.item() for name, loss in losses.items() if name != "unused"}
        weights = {name: getattr(self.objectives, name, 1.0) for name in losses}
        return torch.stack([weights[name] * loss.float() for name, loss in losses.items()]).sum()

    def _checked(self, loss: Tensor, view: View) -> float:
        """Return the loss as a number. Raises Diverged on all workers where it is none on one: they would wait for each other."""
        value = loss.item()
        if not math.isfinite(mean_over_workers(value, self.world)):
            whose = "the loss" if not math.isfinite(value) else "the loss of another worker is no number; here it"
            raise Diverged(
                f"{whose} is {value} after {view.position} pairs: lower optimization.learningRate "
                f"(now {self.setting.learning_rate:g}), lengthen optimization.warmupPairs, or set precision to fp32"
            )
        return value

    def _distributed(self) -> nn.Module:
        if self.world.size == 1 or self.sharded:
            return self.module
        # With contrast alone, the heads of a model that has some get no gradient, and nobody is to wait for one.
        config = self.model.config
        heads = config.fusion.num_layers or config.pixels.num_layers or config.parts.attributes
        idle = bool(heads) and not isinstance(self.module, MultiTask)
        return DistributedDataParallel(self.module, find_unused_parameters=idle)


def stacked(texts: Sequence[Tensor]) -> Tensor:
    """Return the rows of all token tensors below each other, padded to the longest."""
    length = max(tokens_BT.shape[1] for tokens_BT in texts)
    return torch.cat([functional.pad(tokens_BT, (0, length - tokens_BT.shape[1]), value=PAD_ID) for tokens_BT in texts])
