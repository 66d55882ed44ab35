"""Attributions of several pairs by several methods, and what they are worth."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from belvedere_platform.errors import InvalidInput
from belvedere_training.data.corpus import held_out_splits, load_split
from belvedere_training.data.render import fit_and_pad
from belvedere_training.explanation.faithfulness import Deletion, deletion, summary
from belvedere_training.explanation.methods import Attribution, Method, attribute
from belvedere_training.explanation.score import pair_of
from belvedere_training.model.files import LoadedModel
from belvedere_training.publish import spread


@dataclass(frozen=True, kw_only=True)
class Study:
    """Attributions and deletions by method, pair by pair."""

    pairs: Sequence[tuple[Tensor, str]]
    found: Mapping[Method, Sequence[Attribution]]
    deletions: Mapping[Method, Sequence[Deletion]]

    def measures(self) -> dict[str, dict[str, float]]:
        """Return for each method its completeness error, and what deleting the named part does."""
        return {
            method: {
                "completeness_error": max(one.completeness_error for one in found),
                **summary(self.deletions[method]),
            }
            for method, found in self.found.items()
        }

    def document(self) -> dict[str, Any]:
        """Return the study as JSON holds it."""
        pairs = [
            {"text": text, "attributions": [found[number].document() for found in self.found.values()]}
            for number, (_, text) in enumerate(self.pairs)
        ]
        return {"measures": self.measures(), "pairs": pairs}


def study(
    loaded: LoadedModel, pairs: Sequence[tuple[Tensor, str]], methods: Sequence[Method], *, samples: int = 512
) -> Study:
    """Explain every pair by every method, and delete what each names."""
    made = [pair_of(loaded.model, loaded.tokenizer, pixels, text) for pixels, text in pairs]
    found = {method: [attribute(loaded.model, pair, method, samples=samples) for pair in made] for method in methods}
    deletions = {
        method: [deletion(loaded.model, pair, one) for pair, one in zip(made, ones, strict=True)]
        for method, ones in found.items()
    }
    return Study(pairs=pairs, found=found, deletions=deletions)


def pairs_of_split(folder: Path, split: str | None, count: int) -> list[tuple[Tensor, str]]:
    """Return pictures with their captions, evenly spread over the split, in its languages in turn."""
    corpus = load_split(folder, split or next(iter(held_out_splits(folder)), "train"))
    pairs = []
    for number, position in enumerate(spread(len(corpus), count)):
        captions = corpus.records[position]["captions"]
        language = sorted(captions)[number % len(captions)]
        pairs.append((corpus.pixels([position])[0], str(captions[language])))
    return pairs


def picture_of(path: Path, size: int) -> Tensor:
    """Return the picture of a file as the model takes it, uint8 [3, S, S]; InvalidInput when it is none."""
    try:
        square = fit_and_pad(Image.open(path), size)
    except OSError as error:
        raise InvalidInput(f"--image {path} is no picture that can be read: {error}") from error
    return torch.from_numpy(np.asarray(square).copy()).permute(2, 0, 1)


def write_report(result: Study, folder: Path) -> list[Path]:
    """Write attributions.json, a figure for each pair, and for several pairs a summary and the dependence of each method."""
    from belvedere_training.explanation.plots import dependence_figure, pair_figure, summary_figure

    folder.mkdir(parents=True, exist_ok=True)
    files = {
        f"pair-{number:03d}.png": pair_figure(pixels, [found[number] for found in result.found.values()])
        for number, (pixels, _) in enumerate(result.pairs)
    }
    if len(result.pairs) > 1:
        for method, found in result.found.items():
            files[f"summary-{method}.png"] = summary_figure(found)
            files[f"dependence-{method}.png"] = dependence_figure(found)
    files["attributions.json"] = json.dumps(result.document(), ensure_ascii=False, indent=1).encode()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return [folder / name for name in files]
