"""One recipe's curve: how many pairs its processor time allows, what a pair costs, and recall at several points of the run."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch.utils.flop_counter import FlopCounterMode

from belvedere_platform.artifacts import ArtifactStore
from belvedere_serving.engines.device import device_for
from belvedere_training.config import RunConfig, resolve
from belvedere_training.data.corpus import Corpus
from belvedere_training.evaluation.retrieval import evaluate
from belvedere_training.loop import Interrupted, Loop
from belvedere_training.recipe import prepare
from belvedere_training.step import Stepper
from belvedere_training.world import LocalWorld
from curve_recipes import recipe_config
from sliced import trained

PILOT_PAIRS, PILOT_STEPS, SAMPLES, ROWS = 1_024_000, 4, 16, 8
LEAST_STEPS = 2


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long a recipe is trained. multiply_adds: of a pair's forward pass, at even distances over the run."""

    pairs: int
    pairs_per_second: float
    weights: int
    multiply_adds: tuple[float, ...]
    device: str = "processor"

    def spent(self, pairs: int) -> float:
        """Return the multiply-adds of the forward passes of the run's first so many pairs."""
        share = pairs / self.pairs * len(self.multiply_adds)
        parts = (min(max(share - number, 0.0), 1.0) for number in range(len(self.multiply_adds)))
        return sum(part * cost for part, cost in zip(parts, self.multiply_adds, strict=True)) * (
            self.pairs / len(self.multiply_adds)
        )


@dataclass(kw_only=True)
class Curve:
    """What a run showed. points: the recalls, each with its `pairs` and `multiply_adds`; hindrance: why it has not ended."""

    plan: Plan
    points: list[dict[str, float]]
    seconds: float | None = None
    hindrance: str = ""


def forward_multiply_adds(stepper: Stepper, position: int) -> float:
    """Return the multiply-adds of the forward pass of one pair, with the objectives and texts that the position draws."""
    with FlopCounterMode(display=False) as counter:
        stepper.look(position, ROWS)
    total: int = counter.get_total_flops()
    return total / 2 / ROWS


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What every recipe is given: seconds of processor time, or without them the same pairs, and the number format of its steps."""

    seconds: float | None = None
    pairs: int = 0
    precision: str = "fp32"

    def steps(self, seconds_each: float, batch: int) -> int:
        """Return how many steps it allows."""
        return self.pairs // batch if self.seconds is None else int(self.seconds / seconds_each)

    def __str__(self) -> str:
        given = f"{self.pairs}p" if self.seconds is None else f"{self.seconds:g}"
        return given if self.precision == "fp32" else f"{given}-{self.precision}"


def planned(config: RunConfig, store: ArtifactStore, budget: Budget) -> Plan:
    """Return what the budget allows, from a few steps that are thrown away; two steps at least."""
    size, stepper = config.optimization.batch_size, prepare(config, store, LocalWorld(cores=1)).stepper
    taken: list[float] = []
    for number in range(PILOT_STEPS):
        start = time.process_time()
        stepper.step(_position(config, number / PILOT_STEPS))
        taken.append(time.process_time() - start)
        if budget.seconds and sum(taken) > budget.seconds / 10:
            break
    each = sum(taken[1:]) / len(taken[1:]) if len(taken) > 1 else taken[0]  # the first one prepares kernels
    costs = [forward_multiply_adds(stepper, _position(config, number / SAMPLES)) for number in range(SAMPLES)]
    return Plan(
        pairs=max(LEAST_STEPS, budget.steps(each, size)) * size,
        pairs_per_second=size / each,
        weights=sum(weight.numel() for weight in stepper.model.parameters()),
        multiply_adds=tuple(costs),
        device=str(device_for("gpu")),
    )


def _position(config: RunConfig, share: float) -> int:
    size = config.optimization.batch_size
    return int(share * config.optimization.pairs) // size * size


def evaluations(pairs: int, most: int, asked: int) -> int:
    """Return how often a run is evaluated: a question costs about half of what a pair does in training, and all of them half at most."""
    return max(1, min(most, pairs // asked))


def curve_of(
    name: str, store: ArtifactStore, splits: Mapping[str, Corpus], *, budget: Budget, points: int, folder: Path
) -> Curve:
    """Train a recipe for its budget, evaluating on its way; what an earlier run left in the folder is taken up."""
    pilot = resolve(recipe_config(name, PILOT_PAIRS, budget.precision), store)
    kept = folder / f"{name}-{budget}-{pilot.digest().removeprefix('sha256:')[:12]}.json"
    document: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    if "plan" not in document:
        document["plan"] = asdict(planned(pilot, store, budget))
        _write(kept, document)
    plan = Plan(**{**document["plan"], "multiply_adds": tuple(document["plan"]["multiply_adds"])})
    hindrance = ""
    if "points" not in document:
        run = _Run(name, store, splits, budget.precision)
        try:
            document |= run.ended(plan, points)
            _write(kept, document)
            run.forget()
        except Interrupted as error:
            document["points"], hindrance = run.points(), str(error)
    found = [{**point, "multiply_adds": plan.spent(int(point["pairs"]))} for point in document["points"]]
    return Curve(plan=plan, points=found, seconds=document.get("seconds"), hindrance=hindrance)


class _Run:
    """A run whose loop can be looked at after it was cut off too."""

    def __init__(self, name: str, store: ArtifactStore, splits: Mapping[str, Corpus], precision: str) -> None:
        self.name, self.store, self.splits, self.precision = name, store, splits, precision
        self.loop: Loop | None = None

    def ended(self, plan: Plan, points: int) -> dict[str, Any]:
        """Return the points of the whole run and its seconds; Interrupted when its slice ended first."""
        times = evaluations(plan.pairs, points, sum(len(corpus) for corpus in self.splits.values()))
        config = recipe_config(self.name, plan.pairs, self.precision)
        evaluation = config.evaluation.model_copy(update={"every_pairs": max(1, plan.pairs // times)})
        config = config.model_copy(update={"evaluation": evaluation})
        loop, _, seconds = trained(config, self.store, cores=1, begun=self._begun)
        last = {"pairs": loop.progress.pairs, **evaluate(loop.stepper.model, loop.stepper.tokenizer, self.splits)}
        return {"points": [*self.points(), last], "seconds": seconds}

    def _begun(self, loop: Loop) -> None:
        loop.quick, self.loop = dict(self.splits), loop

    def points(self) -> list[dict[str, float]]:
        """Return the recalls that were asked on its way."""
        return list(self.loop.progress.recall_curve) if self.loop else []

    def forget(self) -> None:
        """Remove its state: weights and moments of a large model are gigabytes, and the points are all that is asked."""
        if self.loop and isinstance(self.loop.world, LocalWorld):
            self.loop.world.forget()


def _write(path: Path, document: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))
