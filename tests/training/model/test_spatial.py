"""The learned view: it starts as nothing, the loss goes on across stages, and only the right weights learn."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch

from belvedere_training.model.config import VitConfig
from belvedere_training.model.spatial import SpatialTransformer, Stage, enter, stage_at
from belvedere_training.model.vit import VitTower


@pytest.fixture
def tower() -> VitTower:
    return VitTower(VitConfig(image_size=32, patch_size=8, hidden_size=16, num_layers=1, num_heads=2, view=True))


@pytest.mark.parametrize("edge", [16, 48, 64])
def test_the_view_starts_as_the_picture_itself(edge: int) -> None:
    pixels = torch.randn(2, 3, edge, edge)
    torch.testing.assert_close(SpatialTransformer()(pixels), pixels, rtol=1e-4, atol=1e-4)


def test_the_tower_says_the_same_at_the_beginning_of_each_stage(tower: VitTower) -> None:
    pixels, vectors = torch.randn(2, 3, 32, 32), []
    for stage in get_args(Stage):
        enter(tower, stage)
        vectors.append(tower.encode(pixels).pooled_BD)
    torch.testing.assert_close(vectors[0], vectors[1], rtol=1e-3, atol=1e-4)
    assert torch.equal(vectors[1], vectors[2])


@pytest.mark.parametrize(("stage", "view", "rest"), [("fixed", 0, 1), ("warped", 1, 0), ("joint", 1, 1)])
def test_each_stage_trains_its_own_part(tower: VitTower, stage: Stage, view: bool, rest: bool) -> None:
    enter(tower, "joint")
    tower.encode(torch.randn(2, 3, 32, 32)).pooled_BD.square().sum().backward()  # type: ignore[no-untyped-call]
    assert enter(tower, stage) is (stage != "joint"), "it says whether another set of weights learns"
    assert not enter(tower, stage)
    for name, weight in tower.named_parameters():
        assert weight.requires_grad == (weight.grad is not None) == (view if name.startswith("view.") else rest), name


def test_the_view_can_learn_where_to_look() -> None:
    view = SpatialTransformer()
    pixels = torch.zeros(1, 3, 32, 32)
    pixels[..., 16:] = 1.0
    optimizer = torch.optim.Adam(view.parameters(), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        (-view(pixels).mean()).backward()
        optimizer.step()
    assert view(pixels).mean() > 0.8


def test_a_map_of_the_view_goes_back_to_its_place_in_the_picture() -> None:
    view = SpatialTransformer()
    turn = [math.cos(math.pi / 2), -math.sin(math.pi / 2), 0.0, math.sin(math.pi / 2), math.cos(math.pi / 2), 0.0]
    with torch.no_grad():
        view.affine.bias.copy_(torch.tensor(turn))
    pixels = torch.zeros(1, 3, 64, 64)
    pixels[:, :, 4:12, 40:48] = 1.0
    seen = view(pixels).mean(1)
    assert not torch.allclose(seen, pixels.mean(1))
    torch.testing.assert_close(view.in_picture(seen, pixels), pixels.mean(1), rtol=0, atol=1e-3)


def test_places_keep_their_digits_in_half_formats() -> None:
    view, pixels = SpatialTransformer(), torch.randn(2, 3, 64, 64)
    torch.nn.init.normal_(view.affine.weight, std=0.1)
    expected = view(pixels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(view(pixels), expected)


def test_stages_are_a_function_of_the_position() -> None:
    found = [stage_at(pairs, 100) for pairs in (0, 49, 50, 69, 70, 100)]
    assert found == ["fixed", "fixed", "warped", "warped", "joint", "joint"]
