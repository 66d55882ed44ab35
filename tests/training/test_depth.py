"""Depth below the heads: rates that fall with it, and weights that wait for their turn."""

from __future__ import annotations

import hashlib

import torch

from belvedere_training.depth import depths, rate_factors, unfreeze
from belvedere_training.model.config import ModelConfig, TextConfig, VitConfig
from belvedere_training.model.vision_language import VisionLanguageModel
from belvedere_training.optimizer import Optimizers

CONFIG = ModelConfig(
    embed_dim=16,
    vision=VitConfig(image_size=32, patch_size=8, hidden_size=16, num_layers=3, num_heads=2),
    text=TextConfig(vocab_size=300, hidden_size=16, num_layers=2, num_heads=2, max_length=8),
)


def test_depth_counts_from_the_heads_down() -> None:
    found = depths(VisionLanguageModel(CONFIG))
    assert found["log_scale"] == found["text_projection.weight"] == 0
    assert found["vision.layers.2.mlp.0.weight"] == found["vision.norm.weight"] == 1
    assert found["vision.layers.0.mlp.0.weight"] == 3
    assert found["vision.embed.weight"] == 4
    assert found["text.embedding.weight"] == 3


def test_rates_fall_with_depth_and_every_weight_has_one() -> None:
    model = VisionLanguageModel(CONFIG)
    factors = rate_factors(model, backbone=0.01, decay=0.5)
    assert factors["vision_projection.weight"] == 1
    assert factors["vision.layers.2.mlp.0.weight"] == 0.01
    assert factors["vision.layers.0.mlp.0.weight"] == 0.01 * 0.25
    optimizer = Optimizers(model, learning_rate=1e-3, weight_decay=0.0, factors=factors)
    rate_of = {id(p): group["lr"] for part in optimizer.parts for group in part.param_groups for p in group["params"]}
    assert len(rate_of) == len(list(model.parameters()))
    head, block = model.vision_projection.weight, model.vision.layers[2].mlp[0].weight
    assert rate_of[id(block)] / rate_of[id(head)] == 0.01


def test_more_weights_learn_on_schedule_and_a_resumed_run_agrees() -> None:
    model = VisionLanguageModel(CONFIG)
    counts = []
    for pairs in range(0, 600, 100):
        changed = unfreeze(model, pairs, 100)
        assert changed == (pairs < 500), "the last stage is reached with 400 pairs"
        counts.append(sum(p.numel() for p in model.parameters() if p.requires_grad))
    assert counts[:5] == sorted(set(counts[:5]))
    assert counts[-1] == sum(p.numel() for p in model.parameters())
    resumed = VisionLanguageModel(CONFIG)
    unfreeze(resumed, 200, 100)
    assert sum(p.numel() for p in resumed.parameters() if p.requires_grad) == counts[2]


def test_frozen_weights_do_not_change_by_a_bit() -> None:
    model = VisionLanguageModel(CONFIG)
    optimizer = Optimizers(model, learning_rate=1e-2, weight_decay=0.1)
    unfreeze(model, 0, 100)

    def digest(frozen: bool) -> str:
        weights = [p for name, p in model.named_parameters() if (depths(model)[name] > 0) == frozen]
        return hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in weights)).hexdigest()

    before = digest(True), digest(False)
    for _ in range(3):
        image, text, scale = model(torch.randn(4, 3, 32, 32), torch.randint(1, 300, (4, 6)))
        optimizer.zero_grad()
        (scale * (image * text).sum()).backward()
        optimizer.step()
    assert digest(True) == before[0]
    assert digest(False) != before[1]
