"""Where in a picture the thing is that a text names: Grad-CAM of the similarity, and a game that says whether it points right."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from belvedere_platform.errors import InvalidInput
from belvedere_training.explanation.score import Pair, Similarity, pair_of
from belvedere_training.model.dual import DualStream
from belvedere_training.model.files import LoadedModel
from belvedere_training.model.vit import VitTower

# B batch, S picture edge, R and C rows and columns of the tower's grid, N tokens, D width

_TILES = 4


@dataclass(frozen=True, kw_only=True)
class PointingGame:
    """How often the map points at the named one of four pictures laid out as a square. By chance: a quarter of the times.

    Böhle et al. 2021 (arXiv:2104.00032), section 4, without their choice of pictures that the model is sure of.
    """

    hits: int
    games: int
    inside: float
    """The mean share of the map that lies in the right quarter."""

    @property
    def hit_rate(self) -> float:
        """Return the share of games in which the named quarter got the most of the map."""
        return self.hits / self.games


def ground(model: DualStream, pair: Pair) -> Tensor:
    """Return how much each place of the tower's grid [R, C] speaks for the text; nothing is below zero.

    Selvaraju et al. 2017 (arXiv:1610.02391), equations 1 and 2, with the similarity in the place of a class's score.
    """
    with torch.enable_grad(), _grid(model.vision) as grids:
        score = Similarity(model.eval())(pair.pixels_13SS, pair.embedded_1TD, pair.valid_1T)
        map_1RC = _cam(score, grids[0], _shape(model, pair.pixels_13SS))
        view = getattr(model.vision, "view", None)
        return (map_1RC if view is None else view.in_picture(map_1RC, pair.pixels_13SS))[0]


def pointing_game(
    loaded: LoadedModel, pairs: Sequence[tuple[Tensor, str]], *, games: int, seed: int = 0
) -> PointingGame:
    """Play games with four of the pairs each, uint8 pictures [3, S, S], one of whose texts is given."""
    if len(pairs) < _TILES:
        raise InvalidInput(
            f"the pointing game lays {_TILES} pictures out, and there are {len(pairs)}: take more with --count"
        )
    drawn, hits, inside = random.Random(seed), 0, 0.0
    for _ in range(games):
        tiles, named = drawn.sample(pairs, _TILES), drawn.randrange(_TILES)
        share_Q = _quarters(loaded, torch.stack([pixels for pixels, _ in tiles]), tiles[named][1])
        hits += int(share_Q.argmax() == named)
        inside += share_Q[named].item()
    return PointingGame(hits=hits, games=games, inside=inside / games)


def _quarters(loaded: LoadedModel, tiles_Q3SS: Tensor, text: str) -> Tensor:
    """Return the share of the map in each quarter; a map of nothing points nowhere, and counts a quarter each."""
    mosaic_3SS = torch.cat([torch.cat(list(half), 2) for half in tiles_Q3SS.chunk(2)], 1)
    map_RC = ground(loaded.model, pair_of(loaded.model, loaded.tokenizer, mosaic_3SS, text))
    share_Q = functional.adaptive_avg_pool2d(map_RC[None], 2).flatten()
    total = share_Q.sum()
    return share_Q / total if total > 0 else torch.full_like(share_Q, 1 / _TILES)


@contextmanager
def _grid(vision: nn.Module) -> Iterator[list[Tensor]]:
    """Keep the last grid of features that all of the tower's answer goes through."""
    grids: list[Tensor] = []
    if isinstance(vision, VitTower):
        # Behind the last layer a class token has taken from the others what it needs, and they lead nowhere.
        hook: Any = vision.layers[-1].register_forward_pre_hook(lambda _, given: grids.append(given[0]))
    else:
        stages: Any = vision.stages
        hook = stages.register_forward_hook(lambda _, __, out: grids.append(out))
    try:
        yield grids
    finally:
        hook.remove()


def _shape(model: DualStream, pixels_B3SS: Tensor) -> tuple[int, int] | None:
    """Return rows and columns where the tower's features are a row of tokens."""
    vision = model.vision
    if not isinstance(vision, VitTower):
        return None
    return pixels_B3SS.shape[2] // vision.patch, pixels_B3SS.shape[3] // vision.patch


def _cam(score_B: Tensor, grid: Tensor, shape: tuple[int, int] | None) -> Tensor:
    """Weigh the features by their mean gradient, and keep what speaks for the text [B, R, C]."""
    gradient = torch.autograd.grad(score_B.sum(), grid)[0]
    features = grid.detach()
    if shape is not None:
        count = shape[0] * shape[1]  # a class token comes first and has no place
        features, gradient = (
            part[:, -count:].transpose(1, 2).reshape(len(part), -1, *shape) for part in (features, gradient)
        )
    return (gradient.mean((2, 3), keepdim=True) * features).sum(1).relu()
