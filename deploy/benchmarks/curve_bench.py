"""Recall against compute, for every size and recipe that is kept: `make bench-curve`.

usage: curve_bench.py --output FILE [--seconds N | --pairs N] [--precision P] [--points N] [--only RECIPE …] [--artifacts URL]

Each recipe is trained from scratch on the emoji set, on the GPU where there is one, for so many seconds of processor time (one
thread, evaluations not counted in the budget) or, with --pairs, over the same pairs as all others, and asked about a never-seen
style and never-seen concepts on its way. What a large size makes of its seconds is few pairs, two steps at least: its row says
so. FILE has rows for every recipe; beside it lie a figure and a page. Recipes
that are not run this time keep the rows that FILE has. With $BELVEDERE_BENCH_STATE and $BELVEDERE_BENCH_SLICE_SECONDS a run that is
cut off goes on where it stood, and one that has ended is not run again.
"""

from __future__ import annotations

import argparse
import os
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from belvedere_platform.telemetry.benchmark import Row, earlier_rows, result, write_benchmark
from belvedere_training.data.corpus import load_split
from curve_plot import write_page
from curve_recipes import RECIPES
from curve_run import Budget, Curve, curve_of
from ending import end_in_order
from scratch import scratch
from sliced import STATE
from training_subject import Subject, prepared

SECONDS = float(os.environ.get("BELVEDERE_BENCH_CURVE_SECONDS", "120"))
SPLITS = ("heldout_style", "heldout_concepts")
METRICS = ("heldout_style_en_r1", "heldout_style_en_r5", "heldout_style_zh_r1", "heldout_concepts_en_r5")
ASKED = ("heldout_style_en_r1", "heldout_concepts_en_r5")
"""The metrics that have a row of their own; all are in the points of each row's curve."""


def rows_of(name: str, curve: Curve) -> list[Row]:
    """Return a row for each metric asked: the recall at the end, and the points on the way to it."""
    plan = curve.plan
    each = sum(plan.multiply_adds) / len(plan.multiply_adds)
    note = curve.hindrance or (
        f"{plan.pairs} pairs, {plan.pairs_per_second:.3g} a second when it was planned; {each / 1e6:.0f} M multiply-adds a pair; "
        f"{curve.seconds:.0f} s of processor time, the evaluations on the way included; on {plan.device}"
    )
    facts = {
        "recipe": name,
        "device": plan.device,
        "weights": plan.weights,
        "pairs": plan.pairs,
        "multiply_adds_a_pair": round(each),
        "seconds": curve.seconds and round(curve.seconds, 1),
        "curve": [{name: point[name] for name in ("pairs", "multiply_adds", *METRICS)} for point in curve.points],
        "note": note,
    }
    ended = curve.points[-1] if not curve.hindrance else {}
    return [result(_named(name, metric), ended.get(metric), "share", "higher", None, **facts) for metric in ASKED]


def empty_rows(name: str, why: str) -> list[Row]:
    """Return a recipe's rows without values."""
    return [result(_named(name, metric), None, "share", "higher", None, recipe=name, note=why) for metric in ASKED]


def _named(recipe: str, metric: str) -> str:
    return f"curve_{recipe.replace('-', '_')}_{metric}"


def measured(name: str, subject: Subject, budget: Budget, points: int) -> list[Row]:
    """Return the recipe's rows, without values where it could not be run."""
    try:
        splits = {split: load_split(subject.concepts, split) for split in SPLITS}
        folder = (STATE or subject.folder) / "curves"
        return rows_of(name, curve_of(name, subject.store, splits, budget=budget, points=points, folder=folder))
    except Exception as error:  # noqa: BLE001 - what other recipes have shown, or will, must not be lost with it
        traceback.print_exc()
        return empty_rows(name, f"{type(error).__name__}: {error}")


def in_order(rows: Sequence[Row]) -> list[Row]:
    """Return the rows in the order of the recipes, those of a recipe that nobody has run without values."""
    by_recipe: dict[str, list[Row]] = {}
    for row in rows:
        by_recipe.setdefault(row["recipe"], []).append(row)
    return [row for name in RECIPES for row in by_recipe.get(name) or empty_rows(name, "not run yet")]


def main() -> None:
    """Run what is asked for, and write file, figure and page after each recipe, so that a run cut short has what it showed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    each = parser.add_mutually_exclusive_group()
    each.add_argument("--seconds", type=float, default=SECONDS, help="of processor time, for each recipe")
    each.add_argument("--pairs", type=int, help="for each recipe, instead of seconds")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16", "fp16", "auto"))
    parser.add_argument("--points", type=int, default=8, help="evaluations of each run at most")
    parser.add_argument("--only", action="append", choices=list(RECIPES))
    parser.add_argument("--artifacts", help="URL of an artifact store that has the emoji set, or is given it")
    options = parser.parse_args()
    given = {"pairs": options.pairs} if options.pairs else {"seconds": options.seconds}
    budget = Budget(**given, precision=options.precision)
    end_in_order()
    started = time.monotonic()
    rows = earlier_rows(options.output)
    with scratch("belvedere-bench-") as folder:
        subject = prepared(folder, options.artifacts, None, 0)
        for name in options.only or RECIPES:
            print(f"[{time.monotonic() - started:6.0f} s] {name}", flush=True)
            own = measured(name, subject, budget, options.points)
            rows = in_order([*(row for row in rows if row["recipe"] != name), *own])
            seconds = round(time.monotonic() - started, 1)
            write_benchmark(options.output, rows, seconds=seconds, packages=("belvedere", "torch"))
            write_page(options.output, rows, METRICS)


if __name__ == "__main__":
    main()
