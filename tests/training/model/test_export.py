"""Towers as programs: every kind of tower answers as the model does, for any number of rows."""

from __future__ import annotations

import io

import pytest
import torch

from belvedere_training.model.config import FusionConfig, ModelConfig, TextConfig, VitConfig
from belvedere_training.model.export import export_towers
from belvedere_training.model.vision_language import VisionLanguageModel


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pooling", "causal", "view"), [("attention", False, False), ("class", True, False), ("attention", False, True)]
)
def test_a_vision_transformer_and_a_causal_text_tower_can_be_exported(pooling: str, causal: bool, view: bool) -> None:
    torch.manual_seed(0)
    size = {"image_size": 32, "patch_size": 8, "hidden_size": 16, "num_layers": 1, "num_heads": 2}
    vision = {**size, "pooling": pooling, "view": view}
    config = ModelConfig(
        topology="fusion",
        vision=VitConfig.model_validate(vision),
        text=TextConfig(vocab_size=300, hidden_size=16, num_layers=1, num_heads=2, max_length=8, causal=causal),
        fusion=FusionConfig(num_layers=1, num_heads=2),
    )
    model = VisionLanguageModel(config).eval()
    if view:
        torch.nn.init.normal_(model.vision.view.affine.weight, std=0.1)
    programs = {name: torch.export.load(io.BytesIO(data)).module() for name, data in export_towers(model).items()}
    for rows in (1, 3):
        pixels = torch.randn(rows, 3, 32, 32)
        torch.testing.assert_close(programs["embed_image.pt2"](pixels), model.embed_image(pixels))
        tokens = torch.tensor([[1, 5, 9, 4, 0, 0, 0, 0]]).repeat(rows, 1)
        for length in (4, 6, 8):
            short = tokens[:, :length]
            torch.testing.assert_close(programs["embed_text.pt2"](short), model.embed_text(tokens))
