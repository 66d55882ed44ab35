"""A model as files: it comes back whole, in every topology, and with the names of older versions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from belvedere_platform.errors import CorruptData
from belvedere_training.model.config import FusionConfig, ModelConfig
from belvedere_training.model.files import CONFIG, load, save
from belvedere_training.model.tokenizer import learn
from belvedere_training.model.vision_language import VisionLanguageModel


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return learn(["red circle", "红色圆形"], 400, 12)


def test_a_model_with_fusion_comes_back(tiny_config: ModelConfig, tokenizer: Tokenizer, tmp_path: Path) -> None:
    fusion = {"topology": "unified", "fusion": FusionConfig(num_layers=1, num_heads=2)}
    model = VisionLanguageModel(ModelConfig.model_validate({**dict(tiny_config), **fusion})).eval()
    save(model, tokenizer, tmp_path)
    again = load(tmp_path).model
    pixels, tokens = torch.randn(2, 3, 64, 64), torch.tensor([[1, 5], [1, 9]])
    assert torch.equal(again.fuse(pixels, tokens).joint_BD, model.fuse(pixels, tokens).joint_BD)


def test_a_model_saved_with_the_old_names_loads(tiny_config: ModelConfig, tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = VisionLanguageModel(tiny_config).eval()
    save(model, tokenizer, tmp_path)
    document = json.loads((tmp_path / CONFIG).read_text())
    old = {"maxLength": "contextLength", "hiddenSize": "width", "numLayers": "layers", "numHeads": "heads"}
    text = {old.get(name, name): value for name, value in document["text"].items() if name != "causal"}
    only = {"topology": "dual", "embedDim": document["embedDim"], "vision": document["vision"], "text": text}
    (tmp_path / CONFIG).write_text(json.dumps(only))
    tokens = torch.tensor([[1, 5, 9]])
    assert torch.equal(load(tmp_path).model.embed_text(tokens), model.embed_text(tokens))


def test_weights_of_another_shape_are_refused(tiny_config: ModelConfig, tokenizer: Tokenizer, tmp_path: Path) -> None:
    save(VisionLanguageModel(tiny_config), tokenizer, tmp_path)
    document = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps({**document, "embedDim": 32}))
    with pytest.raises(CorruptData, match="does not fit"):
        load(tmp_path)
