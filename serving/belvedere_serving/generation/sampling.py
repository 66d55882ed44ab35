"""Which word is taken: the likeliest, or one drawn among the likeliest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

# V vocabulary


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How words are drawn. temperature 0: always the likeliest; top_p: only among those that have this share together."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def generator(self) -> np.random.Generator:
        """Return where the draws of one text come from: one a word, so that the company it is written in has no say."""
        return np.random.default_rng(self.seed)


LIKELIEST = Sampling()


def choose(logits_V: npt.NDArray[Any], sampling: Sampling, generator: np.random.Generator) -> int:
    """Return a token. Nucleus sampling: Holtzman et al. 2020 (arXiv:1904.09751), section 3.1."""
    if sampling.temperature == 0:
        return int(logits_V.argmax())
    scaled_V = logits_V.astype(np.float64) / sampling.temperature
    share_V = np.exp(scaled_V - scaled_V.max())
    share_V /= share_V.sum()
    order_V = np.argsort(-share_V, kind="stable")
    sums_V = share_V[order_V].cumsum()
    count = int(np.searchsorted(sums_V, sampling.top_p * (1 - 1e-12))) + 1
    draw = generator.random() * sums_V[min(count, len(order_V)) - 1]
    return int(order_V[min(int(np.searchsorted(sums_V, draw, side="right")), len(order_V) - 1)])
