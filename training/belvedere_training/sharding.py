"""Weights in shares: each worker keeps a part of every weight, its gradient and its optimizer state (FSDP2).

Zhao et al. 2023 (arXiv:2304.11277); per parameter as in torch.distributed.fsdp.fully_shard. A layer's weights are whole
only while it computes. Without shares every worker holds everything and exchanges gradients (DistributedDataParallel).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from belvedere_platform.errors import InvalidInput
from belvedere_training.config import RunConfig
from belvedere_training.model.attention import TransformerLayer
from belvedere_training.model.fusion import FusionBlock

SHARDED_FROM = 1_000_000_000
"""Weights from which on Auto takes shares: below, gradients and both optimizers' states (16 bytes a weight) fit a device."""
_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def wants_shares(config: RunConfig, model: nn.Module, num_workers: int) -> bool:
    """Return whether each worker is to keep only its share of the weights; InvalidInput where that was asked and cannot be."""
    asked = config.workers.sharding
    hindrance = _hindrance(config, model)
    if asked == "FSDP" and hindrance:
        raise InvalidInput(f"workers.sharding is FSDP, and {hindrance}; or set workers.sharding to DDP")
    large = sum(parameter.numel() for parameter in model.parameters()) >= SHARDED_FROM
    return num_workers > 1 and (asked == "FSDP" or (asked == "Auto" and large and not hindrance))


def _hindrance(config: RunConfig, model: nn.Module) -> str | None:
    """Return what does not go with shares, and what to do about it."""
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        return (
            "the vision tower has batch norm, whose running statistics each worker would keep for itself: "
            "set architecture.tower to vit"
        )
    if config.optimization.unfreeze_every_pairs:
        return (
            f"optimization.unfreezeEveryPairs is {config.optimization.unfreeze_every_pairs}: shares of weights that "
            "begin to learn later are not supported: set unfreezeEveryPairs to 0"
        )
    if config.optimization.resolution != "Whole":
        return (
            f"optimization.resolution is {config.optimization.resolution}: workers with other resolutions in their rows would "
            "call a layer another number of times, and wait for each other's weights forever: set resolution to Whole"
        )
    return None


def shard(network: nn.Module, precision: str, device: torch.device) -> None:
    """Leave this worker its share of the network's weights, which must be the same on every worker. Every rank must call it.

    Shares are float32; a layer computes with copies in the precision, and gradients are summed in float32
    (Micikevicius et al. 2018, arXiv:1710.03740, section 3.1). The network is to be called, not its methods.
    """
    mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
    policy = MixedPrecisionPolicy(param_dtype=_DTYPES[precision], reduce_dtype=torch.float32, cast_forward_inputs=False)
    numbers = {parameter for parameter in network.parameters() if parameter.ndim == 0}  # nothing to share out
    for number in numbers:
        number.data = number.to(device)
    # The root gives its weights back after the forward pass too: what reads them between steps must find shares.
    for module in network.modules():
        if isinstance(module, (TransformerLayer, FusionBlock)):
            fully_shard(module, mesh=mesh, reshard_after_forward=True, mp_policy=policy)
    fully_shard(network, mesh=mesh, reshard_after_forward=True, mp_policy=policy, ignored_params=numbers)


def in_shares(tensor: Tensor) -> bool:
    """Return whether this worker holds only its rows of the tensor."""
    return isinstance(tensor, DTensor)


def own(tensor: Tensor) -> Tensor:
    """Return what this worker holds of a tensor: its rows, or everything."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """Return all of a tensor. In shares: every rank must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shared_like(tensor: Tensor, model: Tensor) -> Tensor:
    """Return a tensor that every worker has whole as the other one is held: in the same shares, or as it is."""
    if not isinstance(model, DTensor):
        return tensor
    return distribute_tensor(tensor.to(model.device), model.device_mesh, model.placements, src_data_rank=None)


def complete_gradients(network: nn.Module, *, fill: bool) -> None:
    """Do after the backward pass what shares leave undone: average the single numbers over the workers.

    fill: give weights that were not used zeros, as they have where several objectives are learned without shares: momentum
    goes on then, so that a run is the same either way.
    """
    for parameter in network.parameters():
        if not parameter.requires_grad:
            continue
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter) if fill else None
        elif not in_shares(parameter):
            distributed.all_reduce(parameter.grad)
            parameter.grad.div_(distributed.get_world_size())


def clipped(gradients: Sequence[Tensor], limit: float) -> Tensor:
    """Bound the norm of all gradients of all workers together, some in shares, and return the norm before."""
    parts = [own(gradient) for gradient in gradients if in_shares(gradient)]
    rest = [gradient for gradient in gradients if not in_shares(gradient)]
    square = nn.utils.get_total_norm(parts).square()
    distributed.all_reduce(square)
    norm = (square + nn.utils.get_total_norm(rest).square()).sqrt() if rest else square.sqrt()
    factor = (limit / (norm + 1e-6)).clamp(max=1.0)
    for part in (*parts, *rest):
        part.mul_(factor)
    return norm


def gathered(weights: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """Return whole weights on the host where they are to be kept, nothing elsewhere. Every rank must call it."""
    found = {}
    for name, tensor in weights.items():
        complete = whole(tensor)
        if keep:
            found[name] = complete.to("cpu")
    return found


def optimizer_state_like(state: dict[str, Any], weights: Iterable[Tensor]) -> dict[str, Any]:
    """Return an optimizer's state, read whole from a checkpoint, with each weight's tensors held as the weight is."""
    shared = {
        number: {
            name: shared_like(value, weight) if isinstance(value, Tensor) and value.shape == weight.shape else value
            for name, value in state["state"].get(number, {}).items()
        }
        for number, weight in enumerate(weights)
        if number in state["state"]
    }
    return {**state, "state": shared}
