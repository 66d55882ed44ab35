"""Pictures are normalised as the model says: by the formula written out, on the way into training and into serving alike."""

from __future__ import annotations

import io
import json
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image

from belvedere_platform.artifacts import ArtifactStore
from belvedere_platform.resources.training_data import Augmentation
from belvedere_serving.engines.preprocess import ImagePreprocessor, Recipe
from belvedere_training.config import RunConfig, resolve
from belvedere_training.data.augmentation import views
from belvedere_training.explanation.score import pair_of
from belvedere_training.model.config import HALF, NORMALIZATIONS, ModelConfig, migrated
from belvedere_training.model.export import preprocessing
from belvedere_training.model.normalization import from_half, normalise, white
from belvedere_training.recipe import prepare
from belvedere_training.world import LocalWorld

SMALL = Augmentation(rotation=0, smallest=0.5, largest=0.5, shift=0, brightness=0, color_shift=0, gray_share=0)


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    """Return a picture of 224 pixels with every value in it."""
    return np.random.default_rng(0).integers(0, 256, (224, 224, 3), np.uint8)


def reference(picture: np.ndarray, name: str) -> np.ndarray:
    """Return what a reader of the papers would compute, in float64, without torch."""
    mean, std = {
        "half": ([0.5] * 3, [0.5] * 3),
        "imagenet": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        "clip": ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]),
    }[name]
    return ((picture / 255 - np.array(mean)) / np.array(std)).transpose(2, 0, 1)


@pytest.mark.parametrize("name", ["half", "imagenet", "clip"])
def test_every_way_in_is_the_formula(picture: np.ndarray, name: str) -> None:
    config = ModelConfig(normalization=NORMALIZATIONS[name])
    pixels_13SS = torch.from_numpy(picture).permute(2, 0, 1)[None]
    document = json.loads(json.dumps(preprocessing(config))) | {"text": {"contextLength": 8}}
    document["image"]["size"] = 224
    encoded = io.BytesIO()
    Image.fromarray(picture).save(encoded, "png")
    evaluated = normalise(pixels_13SS, config.normalization)
    served = torch.from_numpy(ImagePreprocessor(Recipe.model_validate(document).image)([encoded.getvalue()]))
    for found in (evaluated, served):
        assert np.abs(found[0].numpy() - reference(picture, name)).max() < 1e-5
    # A view is sampled between pixels, and then the same formula holds for what was sampled.
    sampled, trained = (
        views(pixels_13SS, torch.Generator().manual_seed(0), Augmentation(), slice(0, 1), 1, of)[0].numpy()
        for of in (HALF, config.normalization)
    )
    shown = ((sampled + 1) / 2 * 255).transpose(1, 2, 0)
    assert np.abs(trained - reference(shown, name)).max() < 1e-5


def test_what_leaves_the_frame_and_what_is_compared_with_are_white(picture: np.ndarray) -> None:
    of = NORMALIZATIONS["imagenet"]
    assert white(HALF).unique().tolist() == [1.0]
    pixels_13SS = torch.from_numpy(picture).permute(2, 0, 1)[None]
    moved = views(pixels_13SS, torch.Generator().manual_seed(0), SMALL, slice(0, 1), 1, of)
    torch.testing.assert_close(moved[0, :, :2, :2], white(of).expand(3, 2, 2), rtol=0, atol=1e-5)
    assert torch.equal(from_half(moved, HALF), moved)


def test_a_run_that_asks_for_it_trains_by_it_and_tells_its_servers(
    store: ArtifactStore, tiny: ModelConfig, run_config: Callable[..., RunConfig]
) -> None:
    document = run_config().model_dump(by_alias=True) | {"architecture": {"normalization": "imagenet"}}
    stepper = prepare(resolve(RunConfig.model_validate(document), store), store, LocalWorld(cores=1)).stepper
    plain = prepare(resolve(run_config(), store), store, LocalWorld(cores=1)).stepper
    assert stepper.model.config.normalization == NORMALIZATIONS["imagenet"]
    assert plain.model.config.normalization == HALF
    expected = from_half(plain.loader.make(0).pixels_B3SS, NORMALIZATIONS["imagenet"])
    assert torch.equal(stepper.loader.make(0).pixels_B3SS, expected)
    assert preprocessing(stepper.model.config)["image"]["mean"] == [0.485, 0.456, 0.406]
    pair = pair_of(stepper.model.eval(), stepper.tokenizer, stepper.corpus.pixels([0])[0], "red circle")
    torch.testing.assert_close(pair.baseline[0][:, :, :1, :1], white(NORMALIZATIONS["imagenet"])[None])


def test_a_model_from_before_is_normalised_as_it_was() -> None:
    document = ModelConfig().model_dump(mode="json", by_alias=True)
    del document["normalization"]
    assert ModelConfig.model_validate(migrated(document)).normalization == HALF
