"""Pruning: the smallest weights become nothing, or whole channels that matter least go."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from belvedere_platform.errors import InvalidInput
from belvedere_training.model.dual import DualStream

# O outputs, I inputs of a layer

_LEAST_CHANNELS = 8


def check_share(share: float) -> None:
    """Raise InvalidInput for a share that cannot be pruned."""
    if not 0 < share < 1:
        raise InvalidInput(f"--share is {share}; allowed is more than 0 and less than 1")


class Masks:
    """Which weights are pruned: those of the smallest magnitude over all layers. Han et al. 2015 (arXiv:1506.02626)."""

    def __init__(self, model: DualStream, share: float) -> None:
        check_share(share)
        self._layers = [module for module in model.modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
        everything = torch.cat([layer.weight.detach().abs().flatten() for layer in self._layers])
        limit = everything.kthvalue(max(1, int(share * len(everything)))).values
        self._kept = [layer.weight.detach().abs() > limit for layer in self._layers]

    @torch.no_grad()
    def apply(self) -> None:
        """Set the pruned weights to nothing; again after every step of a training that follows."""
        for layer, kept in zip(self._layers, self._kept, strict=True):
            layer.weight.mul_(kept)

    @property
    def share(self) -> float:
        """Return the share of weights that are pruned."""
        return 1 - sum(int(kept.sum()) for kept in self._kept) / sum(kept.numel() for kept in self._kept)


def without_channels(model: DualStream, share: float) -> DualStream:
    """Return a copy without the share of inner channels that matter least: of residual blocks, and of MLPs.

    A channel counts by the norm of the weights that make it times those that use it. Nothing outside its block sees it,
    so the model's interface and widths stay. Li et al. 2017 (arXiv:1608.08710), section 3.
    """
    check_share(share)
    smaller = copy.deepcopy(model)
    for module in smaller.modules():
        first, second = getattr(module, "first", None), getattr(module, "second", None)
        if isinstance(first, nn.Sequential) and isinstance(second, nn.Sequential):
            _narrow_convolutions(first, second, share)
        elif isinstance(module, nn.Sequential) and _is_mlp(module):
            _narrow_mlp(module, share)
    return smaller


def _is_mlp(module: nn.Sequential) -> bool:
    return len(module) == 3 and isinstance(module[0], nn.Linear) and isinstance(module[2], nn.Linear)


def _kept(importance_O: Tensor, share: float) -> Tensor:
    count = max(_LEAST_CHANNELS, round((1 - share) * len(importance_O)))
    return importance_O.topk(min(count, len(importance_O))).indices.sort().values


def _narrow_convolutions(first: nn.Sequential, second: nn.Sequential, share: float) -> None:
    maker, norm, user = first[0], first[1], second[0]
    assert isinstance(maker, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    assert isinstance(user, nn.Conv2d)
    importance_O = (
        maker.weight.flatten(1).norm(dim=1) * norm.weight.abs() * user.weight.transpose(0, 1).flatten(1).norm(dim=1)
    )
    kept = _kept(importance_O.detach(), share)
    _cut(maker, "weight", kept, 0)
    maker.out_channels = user.in_channels = norm.num_features = len(kept)
    for name in ("weight", "bias", "running_mean", "running_var"):
        _cut(norm, name, kept, 0)
    _cut(user, "weight", kept, 1)


def _narrow_mlp(module: nn.Sequential, share: float) -> None:
    maker, user = module[0], module[2]
    assert isinstance(maker, nn.Linear)
    assert isinstance(user, nn.Linear)
    kept = _kept((maker.weight.norm(dim=1) * user.weight.norm(dim=0)).detach(), share)
    _cut(maker, "weight", kept, 0)
    _cut(maker, "bias", kept, 0)
    _cut(user, "weight", kept, 1)
    maker.out_features = user.in_features = len(kept)


def _cut(module: nn.Module, name: str, kept: Tensor, dim: int) -> None:
    """Keep only these entries of a parameter or buffer along the dim."""
    old = getattr(module, name)
    new = old.detach().index_select(dim, kept).contiguous()
    setattr(module, name, nn.Parameter(new) if isinstance(old, nn.Parameter) else new)
