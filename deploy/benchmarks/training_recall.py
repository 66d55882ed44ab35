"""Recall from scratch on the emoji set, in no more time than the convolutional baseline needs for its 200,000 pairs.

What is held out is what the baseline was tried on: a style that was never seen, line art as the hard style, and the concepts whose
hash falls into a tenth (not whole families, as the set has by default). Its recalls are those of its own run; what a step of it
costs is measured here, before and after our run, with the faster of its two number formats.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path

from click.testing import CliRunner

from baseline_step import BATCH, PAIRS
from belvedere_platform.telemetry.benchmark import Row, result
from belvedere_training.commands.data import data
from belvedere_training.config import RunConfig, resolve
from belvedere_training.data.corpus import load_split, pull_dataset, resolve_dataset
from belvedere_training.data.styles import STYLES
from belvedere_training.evaluation.retrieval import evaluate
from belvedere_training.loop import Loop
from belvedere_training.model.dual import multiply_adds
from belvedere_training.recipe import prepare
from belvedere_training.world import LocalWorld
from training_steps import Side
from training_subject import Subject, run_config

DATASET = "emoji-concepts"
UNSEEN_BY_THE_BASELINE = ("fluent-hc",)
BUDGET = int(os.environ.get("BELVEDERE_BENCH_RECALL_PAIRS", "200000"))
ROUNDS = 3
BASELINE = {
    "heldout_style_en_r1": (0.474, 0.55),
    "heldout_style_en_r5": (0.745, 0.80),
    "heldout_style_zh_r1": (0.364, 0.42),
    "heldout_concepts_r5": (0.268, 0.35),
    "hard_style_r5": (0.22, 0.28),
}
"""By row: what the baseline reached, and what is to be reached."""
STATE = Path(os.environ["BELVEDERE_BENCH_STATE"]) if "BELVEDERE_BENCH_STATE" in os.environ else None
SLICE_SECONDS = float(os.environ.get("BELVEDERE_BENCH_SLICE_SECONDS", "86400"))
EVERY = 12_800
METRICS = {"heldout_concepts_r5": "heldout_concepts_en_r5", "hard_style_r5": "hard_style_en_r5"}
NAMES = (*BASELINE, "recall_time_vs_baseline")


def rows(subject: Subject) -> list[Row]:
    """Train the nano model once, and return its recalls beside the baseline's, and its time."""
    styles = ",".join(name for name in STYLES if name not in UNSEEN_BY_THE_BASELINE)
    build = ["build", "emoji", "--styles", styles, "--held-out", "concepts", "--output-tag", f"datasets/{DATASET}"]
    CliRunner().invoke(data, [*build, "--artifacts", subject.store.url], catch_exceptions=False)
    folder = pull_dataset(subject.store, resolve_dataset(subject.store, DATASET))
    rates = {"fp32": baseline_rates("fp32", ROUNDS), "bf16": baseline_rates("bf16", 1)}
    config = run_config("recall", pairs=BUDGET, dataset=DATASET)
    config = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"every_pairs": BUDGET // 3})})
    loop, wall, seconds = trained(config, subject)
    rates["fp32"] += baseline_rates("fp32", ROUNDS)
    splits = {name: load_split(folder, name) for name in ("heldout_style", "heldout_concepts", "hard_style")}
    stepper = loop.stepper
    found = evaluate(stepper.model, stepper.tokenizer, splits)
    counts = multiply_adds(stepper.model)
    curve = [*loop.progress.recall_curve, {"pairs": BUDGET, **found}]
    print({name: found[METRICS.get(name, name)] for name in BASELINE}, round(seconds), rates, flush=True)
    note = (
        f"{BUDGET} pairs, {counts['image'] / 1e6:.0f} M multiply-adds a picture and {counts['text'] / 1e6:.0f} M a full text; "
        f"{', '.join(f'{len(corpus)} {name}' for name, corpus in splits.items())}; the baseline: its own run of 197,000 pairs, with 1,740 hard_style, flags included"
    )
    return [
        *(
            result(
                name,
                found[METRICS.get(name, name)],
                "share",
                "higher",
                target,
                peer="convolutional baseline",
                peer_value=other,
                note=note,
            )
            for name, (other, target) in BASELINE.items()
        ),
        time_row(seconds, wall, rates) | {"curve": curve},
    ]


def trained(config: RunConfig, subject: Subject) -> tuple[Loop, float, float]:
    """Train to the end of the budget, and return the seconds by the clock and of processor time.

    With a folder for the state, a run that is cut off after SLICE_SECONDS goes on the next time where it stood.
    """
    resume = config.resume.model_copy(update={"checkpoint_every_pairs": EVERY})
    config = resolve(config.model_copy(update={"resume": resume}), subject.store)
    notice, kept = threading.Event(), STATE / "seconds.json" if STATE else None
    before = json.loads(kept.read_text()) if kept and kept.exists() else [0.0, 0.0]
    began, processor = time.perf_counter(), time.process_time()
    loop = prepare(config, subject.store, LocalWorld(STATE / "state" if STATE else None, notice=notice))
    timer = threading.Timer(SLICE_SECONDS, notice.set)
    timer.start()
    try:
        loop.run()
    finally:
        timer.cancel()
        spent = [before[0] + time.perf_counter() - began, before[1] + time.process_time() - processor]
        if kept:
            kept.write_text(json.dumps(spent))
    return loop, spent[0], spent[1]


def baseline_rates(name: str, rounds: int) -> list[float]:
    """Return pairs a second of processor time of the baseline's step, in a number format."""
    side = Side(sys.executable, "baseline_step.py", name)
    side.steps(1)
    found = [BATCH / side.steps(1)["cpu_seconds"] for _ in range(rounds)]
    side.end()
    return found


def time_row(seconds: float, wall: float, rates: dict[str, list[float]]) -> Row:
    """Return our processor time over what the baseline needs for its pairs at the best pace that was seen."""
    format_, best = max(((name, max(found)) for name, found in rates.items()), key=lambda pair: pair[1])
    needed = PAIRS / best
    note = (
        f"processor seconds; the baseline's {PAIRS} pairs at {best:.0f} a second in {format_} (its own bf16: "
        f"{max(rates['bf16']):.0f}), without making its inputs; ours took {wall:.0f} s by the clock, inputs and evaluations included"
    )
    extra = {"own_value": seconds, "peer": "convolutional baseline", "peer_value": needed}
    return result(NAMES[-1], seconds / needed, "x", "lower", 1.0, note=note, **extra)
