"""The model and its training, measured: `make bench-training`.

usage: training_bench.py --output FILE [--only GROUP …] [--pairs N] [--model REF] [--teacher REF] [--artifacts URL]

Each group makes its rows alone; one that cannot be measured gives rows without a value, and says why. FILE is written after each
group, and with `--only` it keeps what earlier runs measured of the others, with the commit that it was measured at. `--model` takes a model
that is there instead of training one first, `--teacher` a small one to learn from, which costs most of `compression`.
"""

from __future__ import annotations

import argparse
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import training_blocked
import training_compression
import training_explanation
import training_faults
import training_loader
import training_orderings
import training_parts
import training_questions
import training_recall
import training_steps
from belvedere_platform.telemetry.benchmark import Row, earlier_rows, result, write_benchmark
from ending import end_in_order
from scratch import scratch
from training_subject import Subject, prepared

PACKAGES = ("belvedere", "torch", "ray", "captum", "tokenizers")

Group = Callable[[Subject], list[Row]]
GROUPS: Mapping[str, tuple[tuple[str, ...], Group]] = {
    "parts": (training_parts.NAMES, training_parts.rows),
    "orderings": (training_orderings.NAMES, training_orderings.rows),
    "blocked": (training_blocked.NAMES, training_blocked.rows),
    "gradcache": (training_steps.CACHE_NAMES, training_steps.cache_rows),
    "open_clip": (training_steps.NAMES, training_steps.rows),
    "explanation": (training_explanation.NAMES, training_explanation.rows),
    "loader": (training_loader.NAMES, training_loader.rows),
    "recall": (training_recall.NAMES, training_recall.rows),
    "questions": (training_questions.NAMES, training_questions.rows),
    "faults": (training_faults.NAMES, training_faults.rows),
    "elastic": (training_faults.ELASTIC_NAMES, training_faults.elastic_rows),
    "compression": (training_compression.NAMES, training_compression.rows),
}
"""By name: which rows the group makes, so that each is in the file even when it could not be measured, and how."""


def measured(names: tuple[str, ...], group: Group, subject: Subject) -> list[Row]:
    """Return the group's rows, or one without a value for each name when the group fails."""
    try:
        return group(subject)
    except Exception as error:  # noqa: BLE001 - what other groups have measured, or will, must not be lost with it
        traceback.print_exc()
        return [result(name, None, "", "higher", None, note=f"{type(error).__name__}: {error}") for name in names]


def in_order(rows: Sequence[Row], new: Sequence[Row]) -> list[Row]:
    """Return the rows with those of a group put in or replaced, in the order of the groups; a name that no group has is dropped."""
    by_name = {row["name"]: row for row in (*rows, *new)}
    return [by_name[name] for names, _ in GROUPS.values() for name in names if name in by_name]


def main() -> None:
    """Measure the groups asked for and write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--only", action="append", choices=sorted(GROUPS))
    parser.add_argument("--pairs", type=int, default=40_000, help="budget of the model that is looked at")
    parser.add_argument("--model", help="look at this model instead, from --artifacts")
    parser.add_argument("--teacher", help="distil this model, of size small, from --artifacts")
    parser.add_argument("--artifacts", help="URL of the artifact store")
    options = parser.parse_args()
    end_in_order()
    started = time.monotonic()
    with scratch("belvedere-bench-") as folder:
        subject = prepared(folder, options.artifacts, options.model, options.pairs, options.teacher)
        rows = earlier_rows(options.output) if options.only else []
        for name in options.only or GROUPS:
            print(f"[{time.monotonic() - started:6.0f} s] {name}", flush=True)
            rows = in_order(rows, measured(*GROUPS[name], subject))
            write_benchmark(options.output, rows, seconds=round(time.monotonic() - started, 1), packages=PACKAGES)


if __name__ == "__main__":
    main()
