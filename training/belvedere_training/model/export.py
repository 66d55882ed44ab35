"""The two towers as programs that serving can compile without this package, and what must be done to their inputs."""

from __future__ import annotations

import io
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, export

from belvedere_training.model.config import ModelConfig
from belvedere_training.model.dual import DualStream
from belvedere_training.model.text import PAD_ID


class _EmbedText(nn.Module):
    def __init__(self, model: DualStream) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model.embed_text(tokens)


class _EmbedImage(nn.Module):
    def __init__(self, model: DualStream) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model.embed_image(pixels)


def export_towers(model: DualStream) -> dict[str, bytes]:
    """Return embed_text.pt2 (input `tokens` [n, l], l up to the longest text) and embed_image.pt2 (`pixels` [n, 3, S, S])."""
    config = model.config
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    # A plain copy: no channels-last strides, no gradients, the caller's mode untouched. Fusion and heads stay behind.
    model = DualStream(config).eval()
    model.load_state_dict({name: weights[name] for name in model.state_dict()})
    # One shorter than the longest: an exporter takes a size that equals another for the same.
    tokens_BT = torch.ones(2, config.text.max_length - 1, dtype=torch.long)
    lengths = {1: Dim("length", min=2, max=config.text.max_length)}
    pixels_B3SS = torch.zeros(2, 3, config.vision.image_size, config.vision.image_size)
    programs = {
        "embed_text.pt2": _program(_only(_EmbedText(model), "text"), tokens_BT, "tokens", lengths),
        "embed_image.pt2": _program(_only(_EmbedImage(model), "vision"), pixels_B3SS, "pixels", {}),
    }
    return programs


def _only(wrapper: Any, tower: str) -> Any:
    """Leave the other tower out, so that each program carries its own weights alone."""
    other = {"text": "vision", "vision": "text"}[tower]
    lean = object.__new__(type(wrapper.model))
    lean.__dict__ = dict(wrapper.model.__dict__)
    lean._modules = {name: child for name, child in wrapper.model._modules.items() if not name.startswith(other)}
    wrapper.model = lean
    return wrapper.eval()


def _program(wrapper: nn.Module, example: Tensor, name: str, free: dict[int, Dim]) -> bytes:
    shapes = {name: {0: Dim("batch", min=1, max=4096), **free}}
    with torch.no_grad():
        program = export(wrapper, (example,), dynamic_shapes=shapes)
    out = io.BytesIO()
    torch.export.save(program, out)
    return out.getvalue()


def preprocessing(config: ModelConfig) -> dict[str, Any]:
    """Return what a server must do to a picture and a text before it calls the programs."""
    return {
        "image": {
            "size": config.vision.image_size,
            "mean": list(config.normalization.mean),
            "std": list(config.normalization.std),
            "background": "white",
            "resize": "fit-and-pad",
            "interpolation": "lanczos",
        },
        "text": {"contextLength": config.text.max_length, "padId": PAD_ID, "tokenizer": "tokenizer.json"},
        "embeddingDim": config.embed_dim,
    }
