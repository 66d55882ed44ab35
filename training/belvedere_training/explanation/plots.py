"""Figures of attributions: a map over the picture, bars for its words, a summary over many pairs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from belvedere_training.evaluation.plots import png, pyplot
from belvedere_training.explanation.methods import Attribution

_MOST_WORDS = 20


def pair_figure(pixels_3SS: Tensor, found: Sequence[Attribution]) -> bytes:
    """Draw the picture, then for each method its map and the bars of its words."""
    figure, axes = pyplot("explain").subplots(2, len(found) + 1, figsize=(3 * (len(found) + 1), 6), squeeze=False)
    picture_SS3 = pixels_3SS.permute(1, 2, 0).numpy()
    axes[0][0].imshow(picture_SS3)
    axes[0][0].set_title(f"score {found[0].score:.3f}, empty {found[0].baseline_score:.3f}", fontsize=8)
    axes[1][0].axis("off")
    for place, one in enumerate(found, start=1):
        limit = float(one.pixels_SS.abs().max()) or 1.0
        axes[0][place].imshow(picture_SS3.mean(-1), cmap="gray", alpha=0.35)
        axes[0][place].imshow(one.pixels_SS.numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit, alpha=0.75)
        axes[0][place].set_title(one.method, fontsize=9)
        _bars(axes[1][place], one)
    for axis in axes[0]:
        axis.axis("off")
    return png(figure)


def _bars(axes: object, one: Attribution) -> None:
    labels = [_plain(word, place) for place, word in enumerate(one.words)]
    axes.barh(range(len(labels)), one.word_values, color=["#b3261e" if v > 0 else "#2060d0" for v in one.word_values])  # type: ignore[attr-defined]
    axes.set_yticks(range(len(labels)), labels, fontsize=8)  # type: ignore[attr-defined]
    axes.invert_yaxis()  # type: ignore[attr-defined]


def _plain(word: str, place: int) -> str:
    """Return the word if the figure's font has its letters, else its place: figures are drawn without other fonts."""
    return word if word.isascii() and word else f"word {place}"


def grounding_figure(pixels_3SS: Tensor, map_RC: Tensor, text: str) -> bytes:
    """Draw the picture, and over it where the thing is that the text names."""
    figure, axis = pyplot("explain").subplots(figsize=(4, 4))
    height, width = pixels_3SS.shape[1:]
    axis.imshow(pixels_3SS.permute(1, 2, 0).numpy())
    axis.imshow(map_RC.numpy(), cmap="inferno", alpha=0.5, extent=(0, width, height, 0), interpolation="bilinear")
    axis.set_title(_plain(text, 0), fontsize=9)
    axis.axis("off")
    return png(figure)


def summary_figure(found: Sequence[Attribution]) -> bytes:
    """Draw each word's attributions over all pairs as points, the strongest words first."""
    values: dict[str, list[float]] = defaultdict(list)
    for one in found:
        for place, (word, value) in enumerate(zip(one.words, one.word_values, strict=True)):
            if place and word.isascii() and word:
                values[word].append(value)
    ordered = sorted(values, key=lambda word: -float(np.abs(values[word]).mean()))[:_MOST_WORDS]
    figure, axes = pyplot("explain").subplots(figsize=(7, 1 + 0.3 * max(1, len(ordered))))
    for place, word in enumerate(ordered):
        axes.scatter(values[word], [place] * len(values[word]), s=12, alpha=0.6)
    axes.set_yticks(range(len(ordered)), ordered, fontsize=8)
    axes.axvline(0, color="grey", linewidth=0.8)
    axes.invert_yaxis()
    axes.set(title=f"what words add to the similarity, {len(found)} pairs", xlabel=found[0].method)
    return png(figure)


def dependence_figure(found: Sequence[Attribution]) -> bytes:
    """Draw what the picture added against what the text added, pair by pair."""
    figure, axes = pyplot("explain").subplots(figsize=(4, 3.5))
    axes.scatter([float(one.pixels_SS.sum()) for one in found], [sum(one.word_values) for one in found], s=14)
    axes.set(xlabel="added by the picture", ylabel="added by the words", title=found[0].method)
    return png(figure)
