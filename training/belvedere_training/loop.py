"""The loop around the steps: reports, evaluations and checkpoints at positions that every worker agrees on."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from tokenizers import Tokenizer

from belvedere_platform.errors import Unavailable
from belvedere_training.config import RunConfig
from belvedere_training.data.corpus import Corpus
from belvedere_training.evaluation.retrieval import evaluate
from belvedere_training.precision import Execution
from belvedere_training.step import Diverged, Stepper
from belvedere_training.world import World, all_cores

CURVE_POINTS = 200
REPORT_SECONDS = 0.5


@dataclass
class Progress:
    """Where the run is. Every random draw is a function of seed and position, so `pairs` is the state of all generators."""

    pairs: int = 0
    train_seconds: float = 0.0
    loss_curve: list[list[float]] = field(default_factory=list)
    rate_curve: list[list[float]] = field(default_factory=list)
    recall_curve: list[dict[str, float]] = field(default_factory=list)

    @property
    def images_per_second(self) -> float:
        """Return the mean rate over the whole run, evaluations not counted."""
        return self.pairs / self.train_seconds if self.train_seconds else 0.0

    def curves(self) -> dict[str, Any]:
        """Return the curves as curves.json holds them: [pairs, value] each."""
        return {"loss": self.loss_curve, "imagesPerSecond": self.rate_curve, "recall": self.recall_curve}


class Interrupted(Unavailable):
    """The run was asked to end before it was done; its state is safe."""


class Meter:
    """Gathers losses and time between two reports, on one worker."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.start = clock()
        self.losses: list[float] = []

    def seconds(self) -> float:
        """Return the time since the last reset."""
        return self.clock() - self.start

    def reset(self) -> None:
        """Begin anew."""
        self.start, self.losses = self.clock(), []


class Loop:
    """Runs a Stepper over the budget."""

    def __init__(
        self,
        config: RunConfig,
        world: World,
        stepper: Stepper,
        progress: Progress,
        quick: dict[str, Corpus],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.config, self.world, self.stepper, self.progress = config, world, stepper, progress
        self.quick = quick
        self.clock = clock
        self._said = float("-inf")
        self._left = False
        size = config.optimization.batch_size
        self.budget = config.optimization.pairs // size * size

    def run(self, until: int | None = None) -> None:
        """Make all steps that are left, or those up to `until` pairs."""
        end = self.budget if until is None else min(until, self.budget)
        meter = Meter(self.clock)
        if self.progress.pairs and self.world.rank == 0:
            self.world.say({"event": "resumed", "pairs": self.progress.pairs})
        while self.progress.pairs < end:
            meter.losses.append(self._step())
            self.progress.pairs += self.config.optimization.batch_size
            on_curve = self._crossed(max(1, self.budget // CURVE_POINTS)) or self.progress.pairs >= end
            if on_curve or meter.seconds() > REPORT_SECONDS:
                self._report(meter, on_curve)
            self._evaluate_and_keep(meter)
            self._make_way()
        self.world.settle()

    def _step(self) -> float:
        """Make a step; a batch that cannot be learned from is saved, so that it can be looked at."""
        position = self.progress.pairs
        try:
            return self.stepper.step(position)
        except Diverged as error:
            where = self.world.evidence(f"diverged-{position}-rank{self.world.rank}.pt", self._batch_at(position))
            raise Diverged(f"{error}; the batch is in {where}") from error

    def _batch_at(self, position: int) -> bytes:
        """Return the batch as a file that torch.load reads with weights_only."""
        batch = self.stepper.loader.make(position)
        out = io.BytesIO()
        content = {
            "pixels": batch.pixels_B3SS.contiguous(),
            "tokens": batch.tokens_BT,
            "texts": list(batch.pairs.texts),
            "pictures": list(batch.pairs.pictures),
            "position": position,
        }
        torch.save(content, out)
        return out.getvalue()

    def _make_way(self) -> None:
        """Save the state just in time when this place is about to be taken away."""
        if self._left or self.progress.pairs >= self.budget or not self.world.leaving(self.progress.pairs):
            return
        self._left = True
        self.world.keep(self.state(), {"pairs": self.progress.pairs})
        if self.world.rank == 0:
            self.world.say({"event": "leaving", "pairs": self.progress.pairs})
        if self.world.ends_when_leaving():
            self.world.settle()
            raise Interrupted(
                f"asked to end after {self.progress.pairs} of {self.budget} pairs: the state is saved, the same command goes on"
            )

    def _report(self, meter: Meter, on_curve: bool) -> None:
        """Publish rank 0's loss (an even share of every batch) and the rate of all workers."""
        pairs = len(meter.losses) * self.config.optimization.batch_size
        loss, rate = sum(meter.losses) / len(meter.losses), pairs / max(meter.seconds(), 1e-9)
        self.progress.train_seconds += meter.seconds()
        if on_curve:
            self.progress.loss_curve.append([self.progress.pairs, round(loss, 5)])
            self.progress.rate_curve.append([self.progress.pairs, round(rate, 1)])
        if self.world.rank == 0 and self.clock() - self._said >= REPORT_SECONDS / 2:
            self._said = self.clock()
            self.world.say(
                {
                    "event": "progress",
                    "pairs": self.progress.pairs,
                    "of": self.budget,
                    "loss": round(loss, 4),
                    "images_per_second": round(rate, 1),
                    **_rounded(self.stepper.told),
                }
            )
        meter.reset()

    def _evaluate_and_keep(self, meter: Meter) -> None:
        """Evaluate and write a checkpoint where their positions are crossed; the end is evaluated by the recipe."""
        if self.progress.pairs >= self.budget:
            return
        evaluate_now = self._crossed(self.config.evaluation.every_pairs)
        keep_now = self.config.resume.policy != "Never" and self._crossed(self.config.resume.checkpoint_every_pairs)
        if not evaluate_now and not keep_now:
            return
        if meter.losses:
            self._report(meter, on_curve=False)
        if evaluate_now:
            self._evaluate()
        if keep_now:
            if self.config.workers.split == "Measured":
                self.stepper.balance()
            self.world.keep(self.state(), {"pairs": self.progress.pairs})
        meter.reset()

    def _evaluate(self) -> None:
        """Evaluate on rank 0; all ranks bring their weights where those are in shares."""
        model = self.stepper.whole_model()
        if self.world.rank != 0 or model is None:
            return
        with all_cores(self.world):
            metrics = evaluate(model, self.stepper.tokenizer, self.quick)
        short = {name: value for name, value in metrics.items() if "_t2i_" not in name and "_i2t_" not in name}
        self.progress.recall_curve.append({"pairs": self.progress.pairs, **short})
        self.world.say({"event": "evaluated", "pairs": self.progress.pairs, "recall": short})

    def _crossed(self, every: int) -> bool:
        """Return whether the last step passed a multiple of `every`."""
        size = self.config.optimization.batch_size
        return self.progress.pairs // every > (self.progress.pairs - size) // every

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds: model, optimizer (its schedule follows from the position), position, execution.

        Every rank must call it.
        """
        self.stepper.agree_on_statistics()
        return {
            "config": self.config.digest(),
            "model": self.stepper.model.state_dict(),
            "optimizer": self.stepper.update.optimizer.state_dict(),
            "update": self.stepper.update.state_dict(),
            "teacher": self.stepper.teacher.state_dict() if self.stepper.teacher else {},
            "progress": asdict(self.progress),
            "tokenizer": self.stepper.tokenizer.to_str(),
            "execution": asdict(self.stepper.execution),
            "counts": list(self.stepper.counts),
        }


def _rounded(told: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    return {what: {name: round(value, 4) for name, value in by_name.items()} for what, by_name in told.items()}


@dataclass(frozen=True, kw_only=True)
class Restored:
    """What is taken from a checkpoint."""

    model: dict[str, Any]
    optimizer: list[dict[str, Any]]
    update: dict[str, Any]
    teacher: dict[str, Any]
    progress: Progress
    tokenizer: Tokenizer
    execution: Execution
    counts: tuple[int, ...]


def restored(state: dict[str, Any] | None, config: RunConfig) -> Restored | None:
    """Return the parts of a checkpoint, or None when there is none of this very configuration."""
    if state is None or config.resume.policy == "Never" or state["config"] != config.digest():
        return None
    return Restored(
        model=state["model"],
        optimizer=state["optimizer"],
        update=state["update"],
        teacher=state["teacher"],
        progress=Progress(**state["progress"]),
        tokenizer=Tokenizer.from_str(state["tokenizer"]),
        execution=Execution(**state["execution"]),
        counts=tuple(state["counts"]),
    )
