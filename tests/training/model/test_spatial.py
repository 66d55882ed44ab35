"""Resolution in stages: the view starts as nothing, the loss goes on across stages, and only the right weights learn."""

from __future__ import annotations

import pytest
import torch

from belvedere_training.model.config import VitConfig
from belvedere_training.model.resolution import resize
from belvedere_training.model.spatial import ProgressiveTower, SpatialTransformer, stage_at
from belvedere_training.model.vit import VitTower


def progressive() -> ProgressiveTower:
    torch.manual_seed(0)
    config = VitConfig(image_size=32, patch_size=8, hidden_size=16, num_layers=1, num_heads=2)
    return ProgressiveTower(VitTower(config), 32)


def test_the_view_starts_as_the_picture_itself() -> None:
    pixels = torch.randn(2, 3, 48, 48)
    torch.testing.assert_close(SpatialTransformer()(pixels, 32), resize(pixels, 32), rtol=1e-4, atol=1e-4)


def test_the_loss_goes_on_where_the_stage_before_left_it() -> None:
    model, pixels = progressive().eval(), torch.randn(2, 3, 48, 48)
    vectors = []
    for stage in ("fixed", "warped", "joint"):
        model.enter(stage)  # type: ignore[arg-type]
        vectors.append(model.encode(pixels).pooled_BD)
    torch.testing.assert_close(vectors[0], vectors[1], rtol=1e-3, atol=1e-4)
    assert torch.equal(vectors[1], vectors[2])


@pytest.mark.parametrize(
    ("stage", "learning"), [("fixed", {"tower"}), ("warped", {"view"}), ("joint", {"tower", "view"})]
)
def test_each_stage_trains_its_own_part(stage: str, learning: set[str]) -> None:
    model = progressive()
    model.enter(stage)  # type: ignore[arg-type]
    model.encode(torch.randn(2, 3, 48, 48)).pooled_BD.square().sum().backward()  # type: ignore[no-untyped-call]
    found = {name.partition(".")[0] for name, weight in model.named_parameters() if weight.grad is not None}
    assert found == learning


def test_the_view_can_learn_where_to_look() -> None:
    view = SpatialTransformer()
    pixels = torch.zeros(1, 3, 32, 32)
    pixels[..., 16:] = 1.0
    optimizer = torch.optim.Adam(view.parameters(), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        (-view(pixels, 16).mean()).backward()
        optimizer.step()
    assert view(pixels, 16).mean() > 0.8


def test_the_joint_stage_takes_every_resolution() -> None:
    model = progressive()
    model.enter("joint")
    assert model.encode(torch.randn(1, 3, 48, 48), 16).grid == (2, 2)


def test_stages_are_a_function_of_the_position() -> None:
    assert [stage_at(pairs, 100) for pairs in (0, 49, 50, 69, 70, 100)] == [
        "fixed",
        "fixed",
        "warped",
        "warped",
        "joint",
        "joint",
    ]
