"""Can an attribution be believed: what is left of the score when the parts it names are taken away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from belvedere_training.explanation.methods import Attribution
from belvedere_training.explanation.score import Pair, Similarity
from belvedere_training.model.dual import DualStream

# S picture edge, G blocks along an edge, K deletions

BLOCKS = 8
SHARE = 0.1
_RANDOM_TIMES = 16


@dataclass(frozen=True, kw_only=True)
class Deletion:
    """How much the score drops when a tenth of the picture goes: the part named most important, and parts drawn at random."""

    top_drop: float
    random_drop: float

    @property
    def advantage(self) -> float:
        """Return how much more the named part matters than a random one; above nothing is faithful."""
        return self.top_drop - self.random_drop


def deletion(model: DualStream, pair: Pair, found: Attribution, *, seed: int = 0) -> Deletion:
    """Replace a tenth of the blocks by white. Petsiuk et al. 2018 (arXiv:1806.07421), section 4.1, at one point of its curve."""
    count = max(1, round(SHARE * BLOCKS**2))
    generator = torch.Generator().manual_seed(seed)
    top = found.blocks(BLOCKS).flatten().argsort(descending=True)[:count]
    drawn = [torch.randperm(BLOCKS**2, generator=generator)[:count] for _ in range(_RANDOM_TIMES)]
    score_K = scores_without(model, pair, [torch.empty(0, dtype=torch.long), top, *drawn])
    return Deletion(top_drop=(score_K[0] - score_K[1]).item(), random_drop=(score_K[0] - score_K[2:].mean()).item())


def deletion_curve(model: DualStream, pair: Pair, found: Attribution) -> list[float]:
    """Return the score after 0, 1, 2 … of the blocks are gone, the most important first."""
    order = found.blocks(BLOCKS).flatten().argsort(descending=True)
    gone: list[Tensor] = [order[:count] for count in range(len(order) + 1)]
    curve: list[float] = scores_without(model, pair, gone).tolist()
    return curve


@torch.inference_mode()
def scores_without(model: DualStream, pair: Pair, gone: Sequence[Tensor]) -> Tensor:
    """Return the score [K] with each set of blocks replaced by the baseline."""
    size = pair.pixels_13SS.shape[-1]
    block_S = torch.arange(size) * BLOCKS // size
    block_SS = block_S[:, None] * BLOCKS + block_S[None]
    white_13SS, _ = pair.baseline
    pictures = [torch.where(torch.isin(block_SS, blocks)[None, None], white_13SS, pair.pixels_13SS) for blocks in gone]
    pixels_K3SS = torch.cat(pictures)
    count = len(pictures)
    valid_KT = pair.valid_1T.expand(count, -1)
    result: Tensor = Similarity(model)(pixels_K3SS, pair.embedded_1TD.expand(count, -1, -1), valid_KT)
    return result


def summary(deletions: Sequence[Deletion]) -> Mapping[str, float]:
    """Return the means, and the share of pairs for which the named part mattered more than a random one."""
    count = len(deletions)
    return {
        "top_drop": sum(one.top_drop for one in deletions) / count,
        "random_drop": sum(one.random_drop for one in deletions) / count,
        "faithful_share": sum(one.advantage > 0 for one in deletions) / count,
    }
