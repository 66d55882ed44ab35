"""What each choice of the recipe buys: the nano model with one choice taken back at a time, over several seeds: `make bench-ablation`.

usage: ablation_bench.py --output FILE [--pairs N] [--seeds N] [--only NAME …] [--artifacts URL]

`with_teacher` is no choice taken back but one more: a slow copy whose answers are soft targets. Where the recipe is measured in
the same run, rows say how much less the recalls of the seeds differ with it, in the student and in the slow copy.
With $BELVEDERE_BENCH_STATE, a run that has ended is not run again: a benchmark that was cut off goes on with the next one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from belvedere_platform.resources.training_data import Augmentation, TextChoice
from belvedere_platform.resources.training_run import Objectives
from belvedere_platform.telemetry.benchmark import Row, result, write_benchmark
from belvedere_training.config import RunConfig, resolve
from belvedere_training.data.corpus import load_split
from belvedere_training.data.sampler import PairSampler
from belvedere_training.evaluation.retrieval import evaluate
from belvedere_training.loop import Loop
from belvedere_training.model.dual import DualStream
from belvedere_training.optimizer import EMBEDDING_FACTOR, Optimizers
from belvedere_training.recipe import prepare
from belvedere_training.world import LocalWorld
from ending import end_in_order
from scratch import scratch
from sliced import STATE
from training_subject import Subject, prepared, run_config

TEACHER = "with_teacher"
SHARE = 0.4  # of the slow copy's belief in the targets (Li et al. 2021, section 4)
SPLITS = ("heldout_style", "heldout_concepts", "hard_style")
METRICS = ("heldout_style_en_r1", "heldout_style_zh_r1", "heldout_concepts_en_r5", "hard_style_en_r5")


def adam_alone(loop: Loop) -> None:
    """Let AdamW move the matrices too, at its own rate."""
    optimizer = _optimizer(loop)
    matrices = [weight for group in optimizer.parts[0].param_groups for weight in group["params"]]
    other = torch.optim.AdamW(matrices, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.05, fused=True)
    other.param_groups[0]["peak"] = 1e-3
    optimizer.parts[0] = other


def embeddings_as_others(loop: Loop) -> None:
    """Give embeddings the rate of all other weights."""
    _optimizer(loop).parts[1].param_groups[0]["peak"] /= EMBEDDING_FACTOR


def no_smoothing(loop: Loop) -> None:
    """Take labels as they are."""
    loop.stepper.setting = loop.stepper.setting.model_copy(update={"label_smoothing": 0.0})


def pictures_as_they_are(loop: Loop) -> None:
    """Show every picture as it is stored."""
    loop.stepper.loader.augmentation = Augmentation(
        rotation=0, smallest=1, largest=1, shift=0, brightness=0, color_shift=0, gray_share=0
    )


def captions_alone(loop: Loop) -> None:
    """Never show synonyms."""
    _texts(loop, TextChoice(caption_alone=1.0))


def english_alone(loop: Loop) -> None:
    """Never show the other language."""
    _texts(loop, TextChoice(english_share=1.0))


CHOICES: Mapping[str, Callable[[Loop], None]] = {
    "recipe": lambda _: None,
    "without_muon": adam_alone,
    "without_embedding_rate": embeddings_as_others,
    "without_label_smoothing": no_smoothing,
    "without_augmentation": pictures_as_they_are,
    "without_synonyms": captions_alone,
    "without_chinese": english_alone,
    TEACHER: lambda _: None,
}
"""By name: what is taken back of a run that is about to begin."""


def _optimizer(loop: Loop) -> Optimizers:
    return loop.stepper.update.optimizer


def _texts(loop: Loop, choice: TextChoice) -> None:
    loader = loop.stepper.loader
    loader.sampler = PairSampler(loader.corpus, seed=loader.seed, texts=choice)


def recalls(subject: Subject, name: str, pairs: int, seed: int) -> dict[str, dict[str, float]]:
    """Return the recalls after a run with this choice, and those of the slow copy where there is one; remembered where asked."""
    config = run_config(f"{name.replace('_', '-')}-{seed}", pairs=pairs, seed=seed, precision="fp32")
    if name == TEACHER:
        config = config.model_copy(update={"objectives": Objectives(distillation=SHARE)})
    config = resolve(config, subject.store)
    if STATE is None:
        return trained(subject, name, config)
    kept = STATE / "ablation" / f"{config.run.name}-{config.digest().removeprefix('sha256:')[:12]}.json"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        part = kept.with_suffix(".part")
        part.write_text(json.dumps(trained(subject, name, config)))
        part.rename(kept)
    return json.loads(kept.read_text())  # type: ignore[no-any-return]


def trained(subject: Subject, name: str, config: RunConfig) -> dict[str, dict[str, float]]:
    """Return the recalls after the run, by whose they are."""
    loop = prepare(config, subject.store, LocalWorld())
    CHOICES[name](loop)
    loop.run()
    splits = {split: load_split(subject.data, split) for split in SPLITS}
    models: dict[str, DualStream] = {name: loop.stepper.model}
    if loop.stepper.teacher is not None:
        models["teacher_itself"] = loop.stepper.teacher.model
    return {of: evaluate(model, loop.stepper.tokenizer, splits) for of, model in models.items()}


def rows_of(name: str, runs: list[dict[str, float]], pairs: int) -> list[Row]:
    """Return a row for each metric: the mean over the seeds, and the least and the most."""
    rows = []
    for metric in METRICS:
        values = [run[metric] for run in runs]
        note = f"{pairs} pairs, {len(values)} seeds"
        spread = {"rounds": len(values), "spread": [min(values), max(values)]}
        rows.append(result(f"{name}_{metric}", statistics.mean(values), "share", "higher", None, note=note, **spread))
    return rows


def steadier(runs: Mapping[str, list[dict[str, float]]]) -> list[Row]:
    """Return the deviation of R@1 over the seeds with a teacher, as a share of that without."""
    metric, rows = METRICS[0], list[Row]()
    if len(runs.get("recipe", [])) < 2:
        return rows
    for name in (TEACHER, "teacher_itself") if TEACHER in runs else ():
        own, peer = (statistics.stdev(run[metric] for run in runs[of]) for of in (name, "recipe"))
        note = f"standard deviation over {len(runs[name])} seeds; so few say no more than the order of it"
        extra = {"own_value": own, "peer": "recipe", "peer_value": peer, "rounds": len(runs[name])}
        rows.append(result(f"{name}_r1_deviation", own / peer if peer else None, "x", "lower", 1.0, note=note, **extra))
    return rows


def main() -> None:
    """Run what is asked for and write the file after each choice, so that a run cut short has its rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=30_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", action="append", choices=sorted(CHOICES))
    parser.add_argument("--artifacts", help="URL of an artifact store that has the emoji set, or is given it")
    options = parser.parse_args()
    end_in_order()
    started, rows = time.monotonic(), list[Row]()
    table = Table("choice", *METRICS)
    with scratch("belvedere-bench-") as folder:
        subject = prepared(folder, options.artifacts, None, options.pairs)
        found: dict[str, list[dict[str, float]]] = {}
        assert subject.data.is_dir()
        for name in options.only or CHOICES:
            runs = [recalls(subject, name, options.pairs, seed) for seed in range(options.seeds)]
            for of in runs[0]:
                found[of] = [run[of] for run in runs]
                made = rows_of(of, found[of], options.pairs)
                table.add_row(
                    of, *(f"{row['value']:.3f} ({row['spread'][0]:.3f} to {row['spread'][1]:.3f})" for row in made)
                )
                rows += made
            seconds = round(time.monotonic() - started, 1)
            write_benchmark(options.output, [*rows, *steadier(found)], seconds=seconds, packages=("torch",))
    Console().print(table)


if __name__ == "__main__":
    main()
