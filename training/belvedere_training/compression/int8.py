"""int8 in torch: weights by output channel, activations by a range that is measured (static), taken each time (dynamic),
or learned to live with (quantization-aware training). Computed by oneDNN's integer kernels.

Activations use 7 bits: processors without VNNI add pairs of products in 16 bits, which 8 bits would overflow, so the
answer would depend on the processor. Jacob et al. 2018 (arXiv:1712.05877), eq. 1 to 12.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from belvedere_training.model.dual import DualStream

# O outputs of a layer

Layer = nn.Linear | nn.Conv2d
_MOST_WEIGHT, _MOST_ACTIVATION = 127, 127
_FORGET = 0.9


@dataclass(frozen=True, kw_only=True)
class Range:
    """The scale and the zero point of an activation."""

    scale: float
    zero_point: int


def range_of(low: float, high: float) -> Range:
    """Return the range that covers low … high, and nothing exactly, as padding needs it. Jacob et al. 2018, section 3."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = max((high - low) / _MOST_ACTIVATION, 1e-8)
    return Range(scale=scale, zero_point=max(0, min(_MOST_ACTIVATION, round(-low / scale))))


def quantized_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return int8 weights and a scale for each output."""
    scale_O = (weight.detach().flatten(1).abs().amax(1) / _MOST_WEIGHT).clamp(min=1e-12)
    shaped = scale_O.reshape(-1, *[1] * (weight.dim() - 1))
    return (weight.detach() / shaped).round().clamp(-_MOST_WEIGHT, _MOST_WEIGHT).to(torch.int8), scale_O


class Int8Layer(nn.Module):
    """A linear layer or convolution that computes in integers. fixed: the activation's range, or None to take it each time."""

    weight: Tensor
    scale_O: Tensor
    zero_O: Tensor
    bias: Tensor | None

    def __init__(self, layer: Layer, fixed: Range | None) -> None:
        super().__init__()
        self.fixed = fixed
        weight, scale_O = quantized_weight(layer.weight)
        self.register_buffer("weight", weight)
        self.register_buffer("scale_O", scale_O)
        self.register_buffer("zero_O", torch.zeros(len(scale_O), dtype=torch.int32))
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach())
        self.geometry: tuple[list[int], list[int], list[int], int] | None = None
        if isinstance(layer, nn.Conv2d):
            stride, padding, dilation = (
                [int(n) for n in pair]
                for pair in (layer.stride, layer.padding, layer.dilation)
                if not isinstance(pair, str)
            )
            self.geometry = (stride, padding, dilation, layer.groups)
        self._packed: dict[Range | None, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        """Return what the layer computes."""
        used = self.fixed or range_of(float(x.min()), float(x.max()))
        whole = (x / used.scale).round_().add_(used.zero_point).clamp_(0, _MOST_ACTIVATION).to(torch.uint8)
        return self._linear(whole, used) if self.geometry is None else self._convolution(whole, used)

    def _linear(self, whole: Tensor, used: Range) -> Tensor:
        if None not in self._packed:
            self._packed[None] = torch.ops.onednn.qlinear_prepack(self.weight, None)
        flat = whole.flatten(0, -2)
        out: Tensor = torch.ops.onednn.qlinear_pointwise(
            flat,
            used.scale,
            used.zero_point,
            self._packed[None],
            self.scale_O,
            self.zero_O,
            self.bias,
            1.0,
            0,
            torch.float32,
            "none",
            [],
            "",
        )
        return out.reshape(*whole.shape[:-1], -1)

    def _convolution(self, whole: Tensor, used: Range) -> Tensor:
        assert self.geometry is not None
        stride, padding, dilation, groups = self.geometry
        if used not in self._packed:
            if self.fixed is None:
                self._packed.clear()  # every batch has its own range: keep one, not all
            self._packed[used] = torch.ops.onednn.qconv_prepack(
                self.weight, self.scale_O, used.scale, used.zero_point, stride, padding, dilation, groups, None
            )
        out: Tensor = torch.ops.onednn.qconv2d_pointwise(
            whole.contiguous(memory_format=torch.channels_last),
            used.scale,
            used.zero_point,
            self._packed[used],
            self.scale_O,
            self.zero_O,
            self.bias,
            stride,
            padding,
            dilation,
            groups,
            1.0,
            0,
            torch.float32,
            "none",
            [],
            "",
        )
        return out


def with_layers(model: DualStream, made: Callable[[str, Layer], nn.Module]) -> DualStream:
    """Return a copy of the model in which every linear layer and convolution is what `made` says of it."""
    changed = copy.deepcopy(model)
    for name, module in list(changed.named_modules()):
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            owner, _, attribute = name.rpartition(".")
            setattr(changed.get_submodule(owner) if owner else changed, attribute, made(name, module))
    return changed


@torch.no_grad()
def measured_ranges(model: DualStream, inputs: Iterable[tuple[Tensor, Tensor]]) -> dict[str, Range]:
    """Return the range of each layer's input over some pictures and texts."""
    lows: dict[str, float] = {}
    highs: dict[str, float] = {}
    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):

            def look(_: nn.Module, given: tuple[Tensor, ...], name: str = name) -> None:
                lows[name] = min(lows.get(name, 0.0), float(given[0].min()))
                highs[name] = max(highs.get(name, 0.0), float(given[0].max()))

            hooks.append(module.register_forward_pre_hook(look))
    try:
        for pixels_B3SS, tokens_BT in inputs:
            model(pixels_B3SS, tokens_BT)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: range_of(lows[name], highs[name]) for name in lows}


Mode = Literal["static", "dynamic"]


def to_int8(
    model: DualStream, mode: Mode, inputs: Iterable[tuple[Tensor, Tensor]] = (), ranges: dict[str, Range] | None = None
) -> DualStream:
    """Return an int8 copy. static needs inputs to measure on, or ranges; a layer that they never reach is dynamic."""
    folded = with_folded_norms(model.eval())
    known = {} if mode == "dynamic" else ranges or measured_ranges(folded, inputs)
    return with_layers(folded, lambda name, layer: Int8Layer(layer, known.get(name)))


def with_folded_norms(model: DualStream) -> DualStream:
    """Return a copy in which each convolution has taken in the batch norm behind it. Jacob et al. 2018, section 3.2."""
    folded = copy.deepcopy(model).eval()
    for module in folded.modules():
        if isinstance(module, nn.Sequential):
            for number in range(len(module) - 1):
                first, second = module[number], module[number + 1]
                if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
                    module[number] = nn.utils.fuse_conv_bn_eval(first, second)
                    module[number + 1] = nn.Identity()
    return folded


class Rounded(torch.autograd.Function):
    """Round; the gradient passes as if nothing had happened. Bengio et al. 2013 (arXiv:1308.3432), section 4."""

    @staticmethod
    def forward(context: object, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(context: object, *gradients: Tensor) -> Tensor:
        return gradients[0]


class FakeInt8Layer(nn.Module):
    """A layer that computes in floats what int8 would round, so that training learns to live with it."""

    low: Tensor
    high: Tensor

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.layer = layer
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))

    @property
    def range(self) -> Range:
        """Return the activation's range so far."""
        return range_of(float(self.low), float(self.high))

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer of rounded weights on rounded activations; the range follows what comes by."""
        if self.training:
            with torch.no_grad():
                for kept, seen in ((self.low, x.min()), (self.high, x.max())):
                    kept.copy_(torch.where(kept == 0, seen, _FORGET * kept + (1 - _FORGET) * seen))
        used = self.range
        limited = (x / used.scale).clamp(-used.zero_point, _MOST_ACTIVATION - used.zero_point)
        rounded: Tensor = Rounded.apply(limited)
        _, scale_O = quantized_weight(self.layer.weight)
        shaped = scale_O.reshape(-1, *[1] * (self.layer.weight.dim() - 1))
        weight: Tensor = Rounded.apply(self.layer.weight / shaped)
        if isinstance(self.layer, nn.Conv2d):
            out: Tensor = self.layer._conv_forward(rounded * used.scale, weight * shaped, self.layer.bias)
            return out
        return functional.linear(rounded * used.scale, weight * shaped, self.layer.bias)


def prepared_for_training(model: DualStream) -> DualStream:
    """Return a copy whose layers round, batch norms folded as they will be, ready for `tune`."""
    return with_layers(with_folded_norms(model), lambda _, layer: FakeInt8Layer(layer))


def trained_to_int8(model: DualStream) -> DualStream:
    """Return the int8 model of one that was trained with rounding, with the ranges that it learned."""
    ranges: dict[str, Range] = {}
    plain = copy.deepcopy(model)
    for name, module in list(plain.named_modules()):
        if isinstance(module, FakeInt8Layer):
            ranges[name] = module.range
            owner, _, attribute = name.rpartition(".")
            setattr(plain.get_submodule(owner) if owner else plain, attribute, module.layer)
    return to_int8(plain, "static", ranges=ranges)
