"""Recall from scratch on the emoji set beside the convolutional baseline: the same pairs, pictures and queries in the same run.

What is held out is what the baseline was tried on: a style that was never seen, line art as the hard style, and the concepts whose
hash falls into a tenth (not whole families, as the set has by default: that is harder). A query is the one caption of a drawing,
asked of the drawings of its split.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from belvedere_platform.telemetry.benchmark import Row, result
from belvedere_training.data.corpus import load_split
from belvedere_training.evaluation.retrieval import evaluate
from belvedere_training.model.dual import multiply_adds
from sliced import SLICE_SECONDS, STATE, trained
from training_subject import CONCEPTS, Subject, run_config

SPLITS = ("heldout_style", "heldout_concepts", "hard_style")
BUDGET = int(os.environ.get("BELVEDERE_BENCH_RECALL_PAIRS", "200000"))
TEXTS = int(os.environ.get("BELVEDERE_BENCH_RECALL_TEXTS", "2"))
OWN_BUDGET = BUDGET if TEXTS == 1 else BUDGET * 7 // 8
"""A pair with two texts costs a quarter more, and ours may take no longer than the baseline: so it gets fewer pairs."""
TARGETS = {
    "heldout_style_en_r1": ("heldout_style_en_r1", 0.55),
    "heldout_style_en_r5": ("heldout_style_en_r5", 0.80),
    "heldout_style_zh_r1": ("heldout_style_zh_r1", 0.42),
    "heldout_concepts_r5": ("heldout_concepts_en_r5", 0.35),
    "hard_style_r5": ("hard_style_en_r5", 0.28),
}
"""By row: the metric, and what is to be reached."""
NAMES = (*TARGETS, "recall_time_vs_baseline")


def rows(subject: Subject) -> list[Row]:
    """Train the nano model and the baseline once each, and return their recalls, and ours in time of theirs."""
    folder = subject.concepts
    config = run_config("recall", pairs=OWN_BUDGET, dataset=CONCEPTS, textsPerPicture=TEXTS)
    config = config.model_copy(
        update={"evaluation": config.evaluation.model_copy(update={"every_pairs": OWN_BUDGET // 3})}
    )
    loop, wall, seconds = trained(config, subject.store)
    splits = {name: load_split(folder, name) for name in SPLITS}
    found = evaluate(loop.stepper.model, loop.stepper.tokenizer, splits)
    baseline = baseline_run(folder, (STATE or subject.folder) / f"baseline-{BUDGET}")
    counts = multiply_adds(loop.stepper.model)
    note = (
        f"{OWN_BUDGET} pairs of {TEXTS} texts, the baseline {BUDGET}; {counts['image'] / 1e6:.0f} M multiply-adds a picture and {counts['text'] / 1e6:.0f} M a "
        f"full text; drawings asked: {', '.join(f'{len(corpus)} {name}' for name, corpus in splits.items())}"
    )
    time_note = f"processor seconds of the whole run, inputs included; the baseline's in {baseline['format']}; ours took {wall:.0f} s by the clock"
    curve = [*loop.progress.recall_curve, {"pairs": OWN_BUDGET, **found}]
    return [
        *(row(name, metric, target, found, baseline, note) for name, (metric, target) in TARGETS.items()),
        result(
            NAMES[-1],
            seconds / baseline["cpu_seconds"],
            "x",
            "lower",
            1.0,
            note=time_note,
            **beside(seconds, baseline["cpu_seconds"]),
        )
        | {"curve": curve},
    ]


def row(name: str, metric: str, target: float, found: dict[str, float], baseline: dict[str, Any], note: str) -> Row:
    """Return one recall beside the baseline's."""
    extra = beside(found[metric], baseline["recall"][metric])
    return result(name, found[metric], "share", "higher", target, note=note, **extra)


def beside(own: float, other: float) -> dict[str, Any]:
    """Return both values."""
    return {"own_value": own, "peer": "convolutional baseline", "peer_value": other}


def baseline_run(folder: Path, state: Path) -> dict[str, Any]:
    """Return what the baseline reached and cost; RuntimeError when its slice ended first."""
    document = state / "baseline.json"
    if not document.exists():
        state.mkdir(parents=True, exist_ok=True)
        program = Path(__file__).with_name("baseline_run.py")
        command = [sys.executable, str(program), str(folder), str(state), str(BUDGET), str(SLICE_SECONDS)]
        if subprocess.run(command, check=False).returncode:
            raise RuntimeError("the baseline is not done: the same command goes on with $BELVEDERE_BENCH_STATE")
    found: dict[str, Any] = json.loads(document.read_text())
    return found
