"""What each choice of the recipe buys: the nano model with one choice taken back at a time, over several seeds: `make bench-ablation`.

usage: ablation_bench.py --output FILE [--pairs N] [--seeds N] [--only NAME …]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from belvedere_platform.telemetry.benchmark import Row, result, write_benchmark
from belvedere_training.config import resolve
from belvedere_training.data.augmentation import Augmentation
from belvedere_training.data.corpus import load_split
from belvedere_training.data.sampler import PairSampler
from belvedere_training.data.texts import TextChoice
from belvedere_training.evaluation.retrieval import evaluate
from belvedere_training.loop import Loop
from belvedere_training.optimizer import EMBEDDING_FACTOR, Optimizers
from belvedere_training.recipe import prepare
from belvedere_training.world import LocalWorld
from training_subject import Subject, prepared, run_config

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
        rotation=0, smallest=1, largest=1, shift=0, brightness=0, colour_shift=0, grey_share=0
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
}
"""By name: what is taken back of a run that is about to begin."""


def _optimizer(loop: Loop) -> Optimizers:
    return loop.stepper.update.optimizer


def _texts(loop: Loop, choice: TextChoice) -> None:
    loader = loop.stepper.loader
    loader.sampler = PairSampler(loader.corpus, seed=loader.seed, texts=choice)


def trained(subject: Subject, name: str, pairs: int, seed: int) -> dict[str, float]:
    """Return the recalls after a run with this choice."""
    config = run_config(f"{name.replace('_', '-')}-{seed}", pairs=pairs, seed=seed, precision="fp32")
    loop = prepare(resolve(config, subject.store), subject.store, LocalWorld())
    CHOICES[name](loop)
    loop.run()
    splits = {split: load_split(subject.data, split) for split in SPLITS}
    return evaluate(loop.stepper.model, loop.stepper.tokenizer, splits)


def rows_of(name: str, runs: list[dict[str, float]], pairs: int) -> list[Row]:
    """Return a row for each metric: the mean over the seeds, and the least and the most."""
    rows = []
    for metric in METRICS:
        values = [run[metric] for run in runs]
        note = f"{pairs} pairs, {len(values)} seeds"
        spread = {"rounds": len(values), "spread": [min(values), max(values)]}
        rows.append(result(f"{name}_{metric}", statistics.mean(values), "share", "higher", None, note=note, **spread))
    return rows


def main() -> None:
    """Run what is asked for and write the file after each choice, so that a run cut short has its rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=30_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", action="append", choices=sorted(CHOICES))
    options = parser.parse_args()
    started, rows = time.monotonic(), list[Row]()
    table = Table("choice", *METRICS)
    with tempfile.TemporaryDirectory(prefix="belvedere-bench-") as folder:
        subject = prepared(Path(folder), None, None, options.pairs)
        assert subject.data.is_dir()
        for name in options.only or CHOICES:
            runs = [trained(subject, name, options.pairs, seed) for seed in range(options.seeds)]
            made = rows_of(name, runs, options.pairs)
            table.add_row(
                name, *(f"{row['value']:.3f} ({row['spread'][0]:.3f} to {row['spread'][1]:.3f})" for row in made)
            )
            rows += made
            write_benchmark(options.output, rows, seconds=round(time.monotonic() - started, 1), packages=("torch",))
    Console().print(table)


if __name__ == "__main__":
    main()
