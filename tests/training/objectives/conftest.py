"""A tiny model with every head, for the objectives."""

from __future__ import annotations

import pytest
import torch

from belvedere_training.model.config import FusionConfig, ModelConfig, PixelConfig, TextConfig, VitConfig
from belvedere_training.model.vision_language import VisionLanguageModel

ALL_HEADS = ModelConfig(
    topology="fusion",
    embed_dim=16,
    vision=VitConfig(image_size=32, patch_size=8, hidden_size=24, num_layers=1, num_heads=2),
    text=TextConfig(vocab_size=300, hidden_size=16, num_layers=1, num_heads=2, max_length=12),
    fusion=FusionConfig(num_layers=1, num_heads=2),
    pixels=PixelConfig(num_layers=1, hidden_size=16, num_heads=2),
)


@pytest.fixture
def whole() -> VisionLanguageModel:
    """Return a model with fusion, language and pixel heads."""
    torch.manual_seed(0)
    return VisionLanguageModel(ALL_HEADS)


@pytest.fixture
def draw() -> torch.Generator:
    """Return a generator with a fixed seed."""
    return torch.Generator().manual_seed(0)
