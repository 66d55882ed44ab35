"""Entropy decides the resolution: its value where it is known, and the thresholds on both sides."""

from __future__ import annotations

import math

import pytest
import torch

from belvedere_platform.errors import InvalidInput
from belvedere_training.model.config import VitConfig
from belvedere_training.model.resolution import (
    ResolutionRouter,
    buckets,
    encode_each,
    entropy,
    resize,
    routed,
    steps_to,
)
from belvedere_training.model.vit import VitTower


def levels(count: int) -> torch.Tensor:
    """Return a grey picture in which so many levels are equally frequent."""
    row = torch.arange(64 * 64).remainder(count).reshape(1, 1, 64, 64)
    return row.expand(1, 3, 64, 64).to(torch.uint8)


@pytest.mark.parametrize("count", [1, 2, 16, 128, 256])
def test_equally_frequent_levels_have_the_entropy_of_their_number(count: int) -> None:
    assert entropy(levels(count)).item() == pytest.approx(math.log2(count), abs=1e-5)


@pytest.mark.parametrize(
    ("bits", "resolution"), [(0.0, 112), (3.99, 112), (4.0, 160), (6.99, 160), (7.0, 224), (8.0, 224)]
)
def test_thresholds_belong_to_the_larger_resolution(bits: float, resolution: int) -> None:
    assert ResolutionRouter().of_entropy(bits) == resolution


def test_pictures_are_routed_and_batched_by_resolution() -> None:
    pixels = torch.cat([levels(2), levels(256), levels(64), levels(4)])
    sizes = ResolutionRouter().route(pixels)
    assert sizes == [112, 224, 160, 112]
    assert dict(buckets(sizes)) == {112: [0, 3], 160: [2], 224: [1]}
    batch = routed(pixels.float(), sizes, 16)
    assert batch.valid_BN.sum(1).tolist() == [49, 196, 100, 49]


def test_resizing_a_constant_changes_nothing() -> None:
    torch.testing.assert_close(resize(torch.full((1, 3, 64, 64), 0.3), 112), torch.full((1, 3, 112, 112), 0.3))


@pytest.mark.parametrize(("edge", "stride", "steps"), [(224, 16, (112, 160, 224)), (64, 8, (32, 48, 64))])
def test_the_resolutions_are_half_five_sevenths_and_all_of_the_edge(
    edge: int, stride: int, steps: tuple[int, ...]
) -> None:
    assert steps_to(edge, stride) == steps


def test_an_edge_whose_half_is_no_multiple_of_the_stride_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"half of the 80 pixels is no multiple of 16.*of a multiple of 32 pixels"):
        steps_to(80, 16)


@torch.inference_mode()
def test_each_picture_is_encoded_as_it_would_be_alone_at_its_resolution() -> None:
    torch.manual_seed(0)
    tower = VitTower(VitConfig(image_size=64, patch_size=16, hidden_size=16, num_layers=1, num_heads=2)).eval()
    pixels, sizes = torch.randn(5, 3, 64, 64), [64, 32, 48, 32, 64]
    together = encode_each(tower, pixels, sizes)
    assert together.valid_BT.sum(1).tolist() == [16, 4, 9, 4, 16]
    assert together.grid is None
    for row, size in enumerate(sizes):
        alone = tower.encode(pixels[row : row + 1] if size == 64 else resize(pixels[row : row + 1], size))
        torch.testing.assert_close(together.pooled_BD[row : row + 1], alone.pooled_BD)
        torch.testing.assert_close(together.tokens_BTD[row, : len(alone.tokens_BTD[0])], alone.tokens_BTD[0])
    assert torch.equal(encode_each(tower, pixels, [64] * 5).pooled_BD, tower.encode(pixels).pooled_BD)
