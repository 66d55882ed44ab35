"""Integrated Gradients, LIME, Kernel SHAP and Gradient SHAP behind one call, over pixels and words at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from belvedere_platform.errors import InvalidInput, Unavailable
from belvedere_training.explanation.regression import WeightedRidge
from belvedere_training.explanation.score import Pair, Similarity
from belvedere_training.model.dual import DualStream

# S picture edge, G blocks along an edge, T tokens

Method = Literal["integrated-gradients", "lime", "kernel-shap", "gradient-shap"]
METHODS: tuple[Method, ...] = get_args(Method)
_BLOCKS = 8
_STEPS, _MOST_STEPS = 64, 1024
_COMPLETE = 0.01
_CHUNK = 64
_LIME_PENALTY, _SHAP_PENALTY = 1e-3, 1e-9


@dataclass(frozen=True, kw_only=True)
class Attribution:
    """What each place of the picture and each word added to the similarity, against a white picture and no words."""

    method: Method
    score: float
    baseline_score: float
    pixels_SS: Tensor
    words: tuple[str, ...]
    word_values: tuple[float, ...]

    @property
    def completeness_error(self) -> float:
        """Return how far the sum is from what it should add up to, as a share of that. Sundararajan et al. 2017, prop. 1."""
        gained = self.score - self.baseline_score
        total = self.pixels_SS.sum().item() + sum(self.word_values)
        return abs(total - gained) / max(abs(gained), 1e-12)

    def blocks(self, count: int = _BLOCKS) -> Tensor:
        """Return the sums over a grid of blocks [G, G]."""
        edge = self.pixels_SS.shape[0] // count
        return self.pixels_SS[: edge * count, : edge * count].reshape(count, edge, count, edge).sum((1, 3))

    def document(self) -> dict[str, Any]:
        """Return the attribution as JSON holds it."""
        return {
            "method": self.method,
            "score": self.score,
            "baselineScore": self.baseline_score,
            "completenessError": self.completeness_error,
            "words": [[word, value] for word, value in zip(self.words, self.word_values, strict=True)],
            "blocks": self.blocks().tolist(),
        }


def attribute(
    model: DualStream, pair: Pair, method: Method = "integrated-gradients", *, samples: int = 512, seed: int = 0
) -> Attribution:
    """Return the attribution of the pair's similarity. The same seed gives the same answer.

    Integrated Gradients: Sundararajan et al. 2017 (arXiv:1703.01365). LIME: Ribeiro et al. 2016. SHAP: Lundberg and Lee
    2017 (arXiv:1705.07874). LIME and Kernel SHAP see the picture as blocks; the others see each pixel.
    """
    if method not in METHODS:
        raise InvalidInput(f"--method is {method!r}; allowed are {', '.join(METHODS)}")
    captum = _captum()
    similarity = Similarity(model)
    with _seeded(seed), _at_rest(model):
        if method == "integrated-gradients":
            values = _integrated(captum, similarity, pair)
        elif method == "gradient-shap":
            values = _gradient_shap(captum, similarity, pair, samples)
        else:
            values = _perturbed(captum, similarity, pair, method, samples)
        with torch.no_grad():
            score = similarity(pair.pixels_13SS, pair.embedded_1TD, pair.valid_1T).item()
            baseline_score = similarity(*pair.baseline, pair.valid_1T).item()
    return Attribution(
        method=method,
        score=score,
        baseline_score=baseline_score,
        pixels_SS=values[0].detach()[0].sum(0),
        words=pair.words,
        word_values=tuple(values[1].detach()[0].sum(-1).tolist()),
    )


@contextmanager
def _at_rest(model: DualStream) -> Iterator[None]:
    """Let the model be looked at, not learn; then let it be as it was."""
    was_training, learning = model.training, [weight for weight in model.parameters() if weight.requires_grad]
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        for weight in learning:
            weight.requires_grad_(True)
        model.train(was_training)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the generators that captum draws from, and leave them as they were: it takes none of its own."""
    state = np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            np.random.set_state(state)


def _captum() -> Any:
    try:
        import captum.attr
    except ImportError as error:
        raise Unavailable("captum is not installed: pip install 'belvedere[explain]'") from error
    return captum.attr


Values = Sequence[Tensor]


def _integrated(captum: Any, similarity: Similarity, pair: Pair) -> Values:
    """Integrate with more and more steps, until the sum says that it is fine enough: ReLUs make the path uneven."""
    method = captum.IntegratedGradients(similarity)
    inputs = (pair.pixels_13SS, pair.embedded_1TD)
    steps = _STEPS
    while True:
        values, delta = method.attribute(
            inputs,
            baselines=pair.baseline,
            additional_forward_args=(pair.valid_1T,),
            n_steps=steps,
            internal_batch_size=_CHUNK,
            return_convergence_delta=True,
        )
        total = sum(value.sum().item() for value in values)
        if abs(delta.item()) <= _COMPLETE / 2 * abs(total) or steps >= _MOST_STEPS:
            found: Values = values
            return found
        steps *= 2


def _gradient_shap(captum: Any, similarity: Similarity, pair: Pair, samples: int) -> Values:
    pixels_13SS, empty_1TD = pair.baseline
    parts = []
    for start in range(0, samples, _CHUNK):
        values: Values = captum.GradientShap(similarity).attribute(
            (pair.pixels_13SS, pair.embedded_1TD),
            baselines=(pixels_13SS, empty_1TD),
            additional_forward_args=(pair.valid_1T,),
            n_samples=min(_CHUNK, samples - start),
        )
        parts.append([value * min(_CHUNK, samples - start) for value in values])
    return [torch.stack(list(part)).sum(0) / samples for part in zip(*parts, strict=True)]


def _perturbed(captum: Any, similarity: Similarity, pair: Pair, method: Method, samples: int) -> Values:
    """Leave blocks and words out at random, and fit a line to what that does to the score."""
    if method == "lime":
        # Samples count by how much they keep: a share of the features, so that the kernel does not depend on pixels.
        explainer = captum.Lime(similarity, interpretable_model=WeightedRidge(_LIME_PENALTY), similarity_func=_nearness)
    else:
        explainer = captum.KernelShap(similarity)
        explainer.interpretable_model = WeightedRidge(_SHAP_PENALTY)
    mask_1SS, mask_1TD, counts = _features(pair)
    values: Values = explainer.attribute(
        (pair.pixels_13SS, pair.embedded_1TD),
        baselines=pair.baseline,
        additional_forward_args=(pair.valid_1T,),
        feature_mask=(mask_1SS, mask_1TD),
        n_samples=samples,
        perturbations_per_eval=_CHUNK,
    )
    # captum writes a feature's value into each of its entries; shared out, the sum is the feature's value.
    return [value / count for value, count in zip(values, counts, strict=True)]


def _nearness(_: Any, __: Any, kept: Tensor, **___: Any) -> Tensor:
    """Return exp(-d² / w²) for the share d of features left out. Ribeiro et al. 2016, section 3.3, w = 0.75."""
    left_out = 1 - kept.float().mean()
    return torch.exp(-(left_out**2) / 0.75**2)


def _features(pair: Pair) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Return which feature each pixel and each embedding entry belongs to, and how many entries share it."""
    size = pair.pixels_13SS.shape[-1]
    block_S = torch.arange(size) * _BLOCKS // size
    mask_1SS = (block_S[:, None] * _BLOCKS + block_S[None])[None, None].expand(1, 3, size, size)
    num_tokens, width = pair.embedded_1TD.shape[1:]
    token_T = torch.arange(num_tokens) + _BLOCKS**2
    mask_1TD = token_T[None, :, None].expand(1, num_tokens, width)
    times = torch.bincount(mask_1SS.flatten())
    return mask_1SS, mask_1TD, (times[mask_1SS].float(), torch.full(mask_1TD.shape, float(width)))
