"""Models of the CLIP family, from the weights that OpenCLIP keeps: another layout of the same computation."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from belvedere_platform.errors import CorruptData
from belvedere_training.model.config import NORMALIZATIONS, ModelConfig, TextConfig, VitConfig
from belvedere_training.model.vision_language import VisionLanguageModel

_LAYER = {
    "ln_1": "attention_norm",
    "attn.in_proj_": "attention.query_key_value.",
    "attn.out_proj": "attention.out",
    "ln_2": "mlp_norm",
    "mlp.c_fc": "mlp.0",
    "mlp.c_proj": "mlp.2",
}
"""Parts of a residual block, as OpenCLIP names them and as TransformerLayer does."""


def config_of(weights: Mapping[str, Tensor], *, vision_heads: int, text_heads: int) -> ModelConfig:
    """Return the configuration that these weights have the shapes of; only the heads are not to be seen in them."""
    width, _, patch, _ = weights["visual.conv1.weight"].shape
    grid = round((len(weights["visual.positional_embedding"]) - 1) ** 0.5)
    vocab_size, hidden_size = weights["token_embedding.weight"].shape
    return ModelConfig(
        embed_dim=weights["text_projection"].shape[1],
        vision=VitConfig(
            image_size=grid * patch,
            patch_size=patch,
            hidden_size=width,
            num_layers=_num_layers(weights, "visual.transformer."),
            num_heads=vision_heads,
            pooling="class",
        ),
        text=TextConfig(
            vocab_size=vocab_size,
            max_length=len(weights["positional_embedding"]),
            hidden_size=hidden_size,
            num_layers=_num_layers(weights, "transformer."),
            num_heads=text_heads,
            causal=True,
        ),
        normalization=NORMALIZATIONS["clip"],
    )


def from_open_clip(weights: Mapping[str, Tensor], *, vision_heads: int, text_heads: int) -> VisionLanguageModel:
    """Return the model with these weights. Radford et al. 2021 (arXiv:2103.00020), section 2.4.

    Padding must be 0 and the end of a text its last token, as in CLIP's own tokenizer.
    """
    if "visual.conv1.weight" not in weights:
        raise CorruptData("these are no weights of a CLIP with a vision transformer: there is no visual.conv1.weight")
    model = VisionLanguageModel(config_of(weights, vision_heads=vision_heads, text_heads=text_heads))
    missing, unexpected = model.load_state_dict(_renamed(weights), strict=False)
    if missing or unexpected:
        raise CorruptData(f"these weights are of another kind of CLIP: {', '.join([*missing, *unexpected][:4])} …")
    return model.eval()


def _num_layers(weights: Mapping[str, Tensor], tower: str) -> int:
    return len(
        {name.split(".resblocks.")[1].split(".")[0] for name in weights if name.startswith(f"{tower}resblocks.")}
    )


def _renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    position_ND = weights["visual.positional_embedding"]
    renamed = {
        "vision.embed.weight": weights["visual.conv1.weight"].flatten(1),
        # The class token has a position of its own, which never changes: it is part of the token here.
        "vision.class_1D": (weights["visual.class_embedding"] + position_ND[0])[None],
        "vision.position_ND": position_ND[1:],
        "vision_projection.weight": weights["visual.proj"].T,
        "text.embedding.weight": weights["token_embedding.weight"],
        "text.position_TD": weights["positional_embedding"],
        "text_projection.weight": weights["text_projection"].T,
        "log_scale": weights["logit_scale"].reshape(()),
    }
    for old, new in (
        ("visual.ln_pre", "vision.norm_before"),
        ("visual.ln_post", "vision.norm"),
        ("ln_final", "text.norm"),
    ):
        for kind in ("weight", "bias"):
            renamed[f"{new}.{kind}"] = weights[f"{old}.{kind}"]
    for name, tensor in weights.items():
        if ".resblocks." in f".{name}":
            renamed[_layer_name(name)] = tensor
    return {name: torch.as_tensor(tensor).contiguous() for name, tensor in renamed.items()}


def _layer_name(name: str) -> str:
    tower = "vision" if name.startswith("visual.") else "text"
    number, _, part = name.split("resblocks.")[1].partition(".")
    for old, new in _LAYER.items():
        part = part.replace(old, new)
    return f"{tower}.layers.{number}.{part}"
