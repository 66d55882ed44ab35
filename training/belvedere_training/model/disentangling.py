"""Split an embedding into what several attributes share and what belongs to one alone.

Domain separation (Bousmalis et al. 2016, arXiv:1608.06019): orthogonal subspaces, and an adversary that must not find
in the shared part what belongs to an attribute.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

# B rows, E embedding, D width of a part

ADVERSARY_WIDTH = 2  # times the shared part
ORTHOGONALITY_FACTOR = 4.0
"""Squared cosines are small beside entropies: without it the parts come to overlap as much as before."""


class _Reverse(torch.autograd.Function):
    """The identity, whose gradient is turned round. Ganin and Lempitsky 2015 (arXiv:1409.7495), section 3.1."""

    @staticmethod
    def forward(context: Any, x: Tensor, factor: float) -> Tensor:
        context.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return -context.factor * gradients[0], None


class _Truncate(torch.autograd.Function):
    """The identity, whose gradient is cut to a norm a row."""

    @staticmethod
    def forward(context: Any, x_BD: Tensor, limit: float) -> Tensor:
        context.limit = limit
        return x_BD.view_as(x_BD)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        norm_B1 = gradients[0].norm(dim=-1, keepdim=True)
        return gradients[0] * (context.limit / norm_B1.clamp(min=1e-12)).clamp(max=1), None


def reversed_gradient(x: Tensor, factor: float = 1.0) -> Tensor:
    """Return x; what is learned from it teaches whoever made x the opposite."""
    out: Tensor = _Reverse.apply(x, factor)
    return out


def truncated_gradient(x_BD: Tensor, limit: float) -> Tensor:
    """Return x; no row of it is moved by a gradient longer than the limit."""
    out: Tensor = _Truncate.apply(x_BD, limit)
    return out


def variance_floor(x_BD: Tensor, floor: float = 1.0) -> Tensor:
    """Return how far the channels' deviations are below the floor: embeddings that collapse pay. Bardes et al. 2022 (arXiv:2105.04906), eq. 1."""
    return functional.relu(floor - (x_BD.var(0, unbiased=False) + 1e-4).sqrt()).mean()


def overlap(first_BD: Tensor, second_BD: Tensor) -> Tensor:
    """Return the mean squared cosine between the channels of both: the normalised ||S^T P||^2. Bousmalis et al. 2016, eq. 5."""
    first_BD = functional.normalize(first_BD - first_BD.mean(0), dim=0)
    second_BD = functional.normalize(second_BD - second_BD.mean(0), dim=0)
    return (first_BD.T @ second_BD).square().mean()


class Parts(NamedTuple):
    """The shared part, and a specific part for each attribute."""

    shared_BD: Tensor
    specific: Mapping[str, Tensor]


class Disentangler(nn.Module):
    """Projections to the parts, a classifier of each attribute on its own part, and adversaries on the shared one."""

    def __init__(self, embed_dim: int, width: int, attributes: Mapping[str, int], gradient_limit: float = 1.0) -> None:
        super().__init__()
        self.gradient_limit = gradient_limit
        self.shared = nn.Linear(embed_dim, width)
        self.specific = nn.ModuleDict({name: nn.Linear(embed_dim, width) for name in attributes})
        self.classifiers = nn.ModuleDict({name: nn.Linear(width, count) for name, count in attributes.items()})
        self.adversaries = nn.ModuleDict({name: _adversary(width, count) for name, count in attributes.items()})

    def forward(self, embedding_BE: Tensor) -> Parts:
        """Return the parts; the gradient that comes back through them is truncated a row."""
        embedding_BE = truncated_gradient(embedding_BE, self.gradient_limit)
        return Parts(self.shared(embedding_BE), {name: own(embedding_BE) for name, own in self.specific.items()})

    def losses(self, embedding_BE: Tensor, labels: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return each term: attribute, orthogonality, adversary and variance. labels: class of each row, by attribute."""
        parts = self(embedding_BE)
        specific = list(parts.specific.items())
        pairs = [(parts.shared_BD, own_BD) for _, own_BD in specific]
        pairs += [(a, b) for number, (_, a) in enumerate(specific) for _, b in specific[number + 1 :]]
        hidden_BD = reversed_gradient(parts.shared_BD)
        return {
            "attribute": _mean(
                functional.cross_entropy(self.classifiers[name](own_BD), labels[name]) for name, own_BD in specific
            ),
            "orthogonality": _mean(overlap(a, b) for a, b in pairs),
            "adversary": _mean(
                functional.cross_entropy(self.adversaries[name](hidden_BD), labels[name]) for name, _ in specific
            ),
            "variance": variance_floor(parts.shared_BD),
        }


def disentangling_loss(terms: Mapping[str, Tensor]) -> Tensor:
    """Return the sum of the terms: one number to weigh beside other objectives."""
    return torch.stack(
        [(ORTHOGONALITY_FACTOR if name == "orthogonality" else 1.0) * term for name, term in terms.items()]
    ).sum()


def _adversary(width: int, count: int) -> nn.Sequential:
    inner = ADVERSARY_WIDTH * width
    return nn.Sequential(nn.Linear(width, inner), nn.ReLU(), nn.Linear(inner, count))


def _mean(terms: Any) -> Tensor:
    return torch.stack(list(terms)).mean()
