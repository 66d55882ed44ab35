"""The configuration of a model: what is refused, in which words, and what old files become."""

from __future__ import annotations

import pytest
import torch

from belvedere_platform.errors import InvalidInput
from belvedere_training.model.config import ModelConfig, ResNetConfig, TextConfig, VitConfig, migrated, sized
from belvedere_training.model.vision_language import VisionLanguageModel
from belvedere_training.validation import parse

VIT = {"kind": "vit", "imageSize": 32, "patchSize": 8, "hiddenSize": 16, "numLayers": 1, "numHeads": 2}


def test_towers_have_the_keys_of_their_papers() -> None:
    assert {"image_size", "patch_size", "hidden_size", "num_layers", "num_heads"} <= set(VitConfig.model_fields)
    assert {"layers", "output_dim"} <= set(ResNetConfig.model_fields)
    assert {"vocab_size", "hidden_size", "num_layers", "num_heads", "max_length"} <= set(TextConfig.model_fields)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"vision": {**VIT, "patchSizes": 8}}, "vision.patchSizes is not a known key; did you mean patchSize?"),
        ({"vision": {"kind": "vit", "hidenSize": 8}}, "vision.hidenSize is not a known key; did you mean hiddenSize?"),
        ({"vision": {"kind": "resnet", "outputDims": 8}}, "did you mean outputDim?"),
        ({"vision": {"kind": "swin"}}, "vision is {'kind': 'swin'}"),
        (
            {"vision": {"kind": "vit", "imageSize": 160, "patchSize": 14}},
            "imageSize 160 is no multiple of patchSize 14; with this patch 154 and 168 work, and of the routed "
            "resolutions 112, 224; patchSize 16 divides 112, 160, 224",
        ),
        ({"vision": {**VIT, "numHeads": 3}}, "hiddenSize 16 must be a multiple of numHeads 3"),
        (
            {"vision": {"kind": "resnet", "imageSize": 100}},
            "model.json: vision: imageSize 100 must be a multiple of 32",
        ),
        ({"text": {"maxLen": 9}}, "text.maxLen is not a known key; did you mean maxLength?"),
        ({"topology": "fusion"}, "model.json: topology fusion needs fusion.numLayers of 1 or more; it is 0"),
        ({"topology": "hybrid", "fusion": {"numLayers": 1}}, "topology hybrid needs fusion.numLayers of 2 or more"),
        ({"pixels": {"numLayers": 1}}, "pixels.numLayers needs vision.kind vit"),
    ],
)
def test_a_wrong_setting_is_named(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse(ModelConfig, wrong, where="model.json")
    assert message in str(caught.value)
    assert "alue error" not in str(caught.value)


def test_a_configuration_comes_back_from_its_document() -> None:
    config = ModelConfig(vision=VitConfig.model_validate(VIT))
    assert ModelConfig.model_validate(config.model_dump(mode="json", by_alias=True)) == config


def test_old_names_are_read_as_todays() -> None:
    old = {
        "vision": {"kind": "conv"},
        "text": {"contextLength": 9, "width": 32, "layers": 1, "heads": 2, "vocabSize": 400},
    }
    expected = TextConfig(max_length=9, hidden_size=32, num_layers=1, num_heads=2, vocab_size=400)
    assert ModelConfig.model_validate(migrated(old)).text == expected


@pytest.mark.parametrize("topology", ["dual", "fusion", "unified", "hybrid"])
@pytest.mark.parametrize("tower", ["conv", "vit", "resnet"])
def test_a_size_comes_in_every_topology_with_every_tower(topology: str, tower: str) -> None:
    config = sized("nano", topology=topology, tower=tower)  # type: ignore[arg-type]
    assert (config.topology, config.vision.kind) == (topology, tower)


@pytest.mark.parametrize(("size", "millions"), [("base", 237.4), ("large", 644.1)])
def test_the_large_sizes_have_about_the_weights_of_their_design(size: str, millions: float) -> None:
    with torch.device("meta"):
        model = VisionLanguageModel(sized(size))
    count = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert count == pytest.approx(millions, rel=0.1)


def test_a_tower_that_a_size_does_not_have_is_named() -> None:
    with pytest.raises(InvalidInput, match="tower is 'conv'; size base has vit, resnet"):
        sized("base", tower="conv")
