"""Entropy decides the resolution: its value where it is known, and the thresholds on both sides."""

from __future__ import annotations

import math

import pytest
import torch

from belvedere_training.model.resolution import ResolutionRouter, buckets, entropy, resize, routed


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
