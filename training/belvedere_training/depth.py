"""How deep a weight lies below the heads: what rates by layer and staged unfreezing go by."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import nn

from belvedere_training.model.spatial import VIEW_FACTOR

_BLOCK = re.compile(r"^(vision|text)\.(?:layers|stages)\.(\d+)\.")


def depths(model: nn.Module) -> dict[str, int]:
    """Return 0 for heads, projections and fusion, 1 for the last block of each tower, and so on down to the embeddings."""
    names = [name for name, _ in model.named_parameters()]
    blocks: dict[str, set[int]] = {"vision": set(), "text": set()}
    for name in names:
        if match := _BLOCK.match(name):
            blocks[match[1]].add(int(match[2]))
    order = {tower: sorted(numbers, reverse=True) for tower, numbers in blocks.items()}
    return {name: _depth(name, order) for name in names}


def _depth(name: str, order: Mapping[str, list[int]]) -> int:
    if match := _BLOCK.match(name):
        return 1 + order[match[1]].index(int(match[2]))
    tower = name.partition(".")[0]
    if tower not in order:
        return 0
    part = name.split(".")[1]
    # What a tower does after its blocks belongs to the last of them, what it does before lies deepest.
    return 1 if part in ("norm", "pool") else 1 + len(order[tower])


def rate_factors(model: nn.Module, *, backbone: float, decay: float) -> dict[str, float]:
    """Return what each weight's learning rate is multiplied by: 1 for heads, less the deeper it lies, least for a learned view.

    Howard and Ruder 2018 (arXiv:1801.06146), section 3.2.
    """
    return {
        name: (VIEW_FACTOR if name.startswith("vision.view.") else 1.0)
        * (1.0 if depth == 0 else backbone * decay ** (depth - 1))
        for name, depth in depths(model).items()
    }


def unfreeze(model: nn.Module, pairs: int, every: int) -> bool:
    """Let weights down to a depth of pairs // every learn and no others; return whether that changed any.

    Gradual unfreezing: Howard and Ruder 2018, section 3.3. A function of the position, so that a resumed run agrees.
    """
    depth_of = depths(model)
    changed = False
    for name, parameter in model.named_parameters():
        learns = every == 0 or depth_of[name] <= pairs // every
        changed |= parameter.requires_grad != learns
        parameter.requires_grad_(learns)
        if not learns:
            parameter.grad = None
    return changed
