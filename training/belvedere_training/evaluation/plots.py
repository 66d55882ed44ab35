"""Figures of an evaluation as PNG. matplotlib is only needed here."""

from __future__ import annotations

import io
from typing import Any

import torch

from belvedere_platform.errors import Unavailable
from belvedere_training.evaluation.embeddings import Embedded
from belvedere_training.evaluation.matching import wrong_partners
from belvedere_training.evaluation.retrieval import CUTOFFS
from belvedere_training.evaluation.run import Evaluation

_SHOWN = 400


def pyplot(extra: str = "report") -> Any:
    """Return matplotlib.pyplot, drawing to memory; Unavailable names the extra that brings it."""
    try:
        import matplotlib
    except ImportError as error:
        raise Unavailable(f"matplotlib is not installed: pip install 'belvedere[{extra}]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def png(figure: Any) -> bytes:
    """Return the figure as PNG, and close it."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110, bbox_inches="tight")
    pyplot().close(figure)
    return out.getvalue()


def figures(result: Evaluation) -> dict[str, bytes]:
    """Return recall by split and language, and for each split how pairs and strangers score and where modalities lie."""
    drawn = {"recall.png": recall_figure(result)}
    for split, embedded in result.embedded.items():
        if embedded.text_NE:
            drawn[f"{split}-space.png"] = space_figure(embedded)
    return drawn


def recall_figure(result: Evaluation) -> bytes:
    """Draw text-to-image recall at each cutoff."""
    pairs = [(split, language) for split, embedded in result.embedded.items() for language in embedded.text_NE]
    figure, axes = pyplot().subplots(figsize=(1.5 + 1.3 * len(pairs), 3))
    width = 0.8 / len(CUTOFFS)
    for number, cutoff in enumerate(CUTOFFS):
        heights = [result.metrics[f"{split}_{language}_r{cutoff}"] for split, language in pairs]
        bars = axes.bar([place + number * width for place in range(len(pairs))], heights, width, label=f"R@{cutoff}")
        axes.bar_label(bars, fmt="%.2f", fontsize=7)
    axes.set_xticks(
        [place + width for place in range(len(pairs))], [f"{split}\n{language}" for split, language in pairs]
    )
    axes.set(ylim=(0, 1.1), title="text to picture")
    axes.legend(frameon=False, fontsize=8)
    return png(figure)


def space_figure(embedded: Embedded) -> bytes:
    """Draw similarities of pairs and of strangers, and both modalities on the first two principal components."""
    language = next(iter(embedded.text_NE))
    text_NE, image_NE = embedded.text_NE[language], embedded.image_NE
    partner = torch.tensor(wrong_partners(list(embedded.corpus.records), language))
    kept = partner >= 0
    figure, (left, right) = pyplot().subplots(1, 2, figsize=(9, 3))
    left.hist((image_NE * text_NE).sum(-1).tolist(), 40, alpha=0.6, label="pairs")
    left.hist((image_NE[kept] * text_NE[partner[kept]]).sum(-1).tolist(), 40, alpha=0.6, label="strangers")
    left.set(title="similarity", xlabel="cosine")
    left.legend(frameon=False, fontsize=8)
    both = torch.cat([image_NE[:_SHOWN], text_NE[:_SHOWN]])
    centred = both - both.mean(0)
    # The sign of a principal component is arbitrary; here its largest entry is positive, so that pictures can be compared.
    _, _, components = torch.linalg.svd(centred, full_matrices=False)
    plane = components[:2] * components[:2].gather(1, components[:2].abs().argmax(1)[:, None]).sign()
    points = centred @ plane.T
    num_images = min(_SHOWN, len(image_NE))
    for name, part in (("pictures", points[:num_images]), ("texts", points[num_images:])):
        right.scatter(part[:, 0].tolist(), part[:, 1].tolist(), s=4, label=name)
    right.set(title="first two principal components")
    right.legend(frameon=False, fontsize=8)
    return png(figure)
