"""The curves as figure and page: recall against the multiply-adds of a run, a line for each recipe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from belvedere_platform.telemetry.benchmark import Row
from belvedere_training.evaluation.page import page, paragraph, picture, table
from belvedere_training.evaluation.plots import png, pyplot

_COLOURS = {"nano": "tab:blue", "small": "tab:orange", "base": "tab:green", "large": "tab:red"}
_MARKERS = "osv^D<>PXp*h"
WHAT = (
    "Multiply-adds are those of the forward passes of all pairs seen so far, as scaling studies count them; the backward pass, "
    "recomputed layers and the optimizer come on top. The rate falls to the end of each run: points before its end are not "
    "what a run of that length would reach."
)


def drawn(rows: Sequence[Row], metrics: Sequence[str]) -> bytes:
    """Return the figure, one panel a metric."""
    figure, panels = pyplot().subplots(1, len(metrics), figsize=(4 * len(metrics) + 2, 5), sharex=True)
    curves = curves_of(rows)
    for metric, axes in zip(metrics, panels, strict=True):
        for recipe, curve in curves.items():
            axes.plot(
                [point["multiply_adds"] for point in curve],
                [point[metric] for point in curve],
                label=recipe,
                **_look(recipe, list(curves)),
            )
        axes.set(xscale="log", xlabel="multiply-adds of all forward passes", title=metric.replace("_", " "))
        axes.grid(alpha=0.3)
    if curves:
        panels[-1].legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return png(figure)


def curves_of(rows: Sequence[Row]) -> dict[str, list[dict[str, float]]]:
    """Return the points of each recipe that has some."""
    return {row["recipe"]: row["curve"] for row in rows if row.get("curve")}


def _look(recipe: str, recipes: Sequence[str]) -> dict[str, Any]:
    """Return the colour of the size, and a marker of the recipe's own among those of its size."""
    size = recipe.partition("-")[0]
    of_size = [other for other in recipes if other.partition("-")[0] == size]
    marker = _MARKERS[of_size.index(recipe) % len(_MARKERS)]
    return {"color": _COLOURS[size], "marker": marker, "markersize": 4, "linewidth": 1}


def write_page(path: Path, rows: Sequence[Row], metrics: Sequence[str]) -> None:
    """Write the figure beside the rows, and a page with it and the last point of each recipe."""
    figure = drawn(rows, metrics)
    path.with_suffix(".png").write_bytes(figure)
    columns = ("recipe", "weights", "multiply-adds a pair", "pairs", "multiply-adds", "seconds", *metrics, "")
    lines = []
    for row in {row["recipe"]: row for row in rows}.values():
        last = (row.get("curve") or [{}])[-1]
        reached = [last.get(name) for name in ("pairs", "multiply_adds")]
        facts = [row["recipe"], row.get("weights"), row.get("multiply_adds_a_pair"), *reached, row.get("seconds")]
        lines.append([*facts, *(last.get(metric) for metric in metrics), row["note"]])
    parts = [picture(figure), paragraph(WHAT), table(columns, lines)]
    path.with_suffix(".html").write_text(page("Recall against compute", parts))
