"""The vision transformer: patches come back, every resolution is understood, token batches say what grids say."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from belvedere_training.model.config import ResNetConfig, VitConfig
from belvedere_training.model.patches import centres, pack, patchify, tokens_of, unpatchify
from belvedere_training.model.resnet import ResNetTower
from belvedere_training.model.vit import VitTower


def tower(pooling: str = "attention") -> VitTower:
    config = VitConfig.model_validate(
        {"image_size": 32, "patch_size": 8, "hidden_size": 16, "num_layers": 2, "num_heads": 2, "pooling": pooling}
    )
    return VitTower(config).eval()


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 4), columns=st.integers(1, 4), patch=st.sampled_from([2, 4, 8]))
def test_patches_come_back_as_the_picture(rows: int, columns: int, patch: int) -> None:
    pixels = torch.randn(2, 3, rows * patch, columns * patch)
    patches = patchify(pixels, patch)
    assert patches.shape == (2, rows * columns, 3 * patch**2)
    assert torch.equal(unpatchify(patches, rows, columns), pixels)


def test_a_patch_is_what_a_strided_convolution_sees() -> None:
    pixels, weight = torch.randn(2, 3, 16, 16), torch.randn(5, 3, 8, 8)
    expected = torch.nn.functional.conv2d(pixels, weight, stride=8).flatten(2).transpose(1, 2)
    torch.testing.assert_close(patchify(pixels, 8) @ weight.flatten(1).T, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pooling", ["attention", "class"])
@pytest.mark.parametrize(("rows", "columns"), [(4, 4), (2, 2), (6, 4)])
def test_tokens_of_any_grid_and_their_vector(pooling: str, rows: int, columns: int) -> None:
    out = tower(pooling).encode(torch.randn(3, 3, rows * 8, columns * 8))
    assert out.tokens_BTD.shape == (3, rows * columns, 16)
    assert out.pooled_BD.shape == (3, 16)
    assert out.grid == (rows, columns)


def test_the_routed_resolutions_give_49_100_and_196_tokens() -> None:
    counts = [tokens_of(torch.zeros(1, 3, size, size), 16).valid_BN.shape[1] for size in (112, 160, 224)]
    assert counts == [49, 100, 196]


@pytest.mark.parametrize("pooling", ["attention", "class"])
def test_a_padded_batch_of_several_sizes_says_what_each_picture_says_alone(pooling: str) -> None:
    model = tower(pooling)
    pictures = [torch.randn(3, 32, 32), torch.randn(3, 16, 24), torch.randn(3, 48, 32)]
    together = model.encode(pack(pictures, 8, num_tokens=30))
    for number, picture in enumerate(pictures):
        alone = model.encode(picture[None])
        count = alone.tokens_BTD.shape[1]
        assert together.valid_BT[number].sum() == count
        torch.testing.assert_close(together.tokens_BTD[number, :count], alone.tokens_BTD[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(together.pooled_BD[number], alone.pooled_BD[0], rtol=1e-4, atol=1e-5)


def test_tokens_can_be_left_out_and_keep_their_places() -> None:
    batch = tokens_of(torch.randn(2, 3, 16, 16), 8)
    kept = batch.keep(torch.tensor([[2, 0], [3, 1]]))
    assert torch.equal(kept.patches_BNP[0], batch.patches_BNP[0, [2, 0]])
    assert torch.equal(kept.centre_BN2[1], centres(2, 2)[[3, 1]])


def test_recomputed_activations_give_the_same_gradient() -> None:
    model = tower().train()
    pixels = torch.randn(2, 3, 32, 32)
    gradients = []
    for recompute in (False, True):
        model.recompute = recompute
        model.zero_grad()
        model.encode(pixels).pooled_BD.square().sum().backward()  # type: ignore[no-untyped-call]
        gradients.append([parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 20
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_a_residual_network_ends_2048_wide_with_four_stages() -> None:
    model = ResNetTower(ResNetConfig(image_size=64, layers=(1, 1, 1, 1), output_dim=24)).eval()
    out = model.encode(torch.randn(2, 3, 64, 64))
    assert out.tokens_BTD.shape == (2, 4, 2048)
    assert out.grid == (2, 2)
    assert out.pooled_BD.shape == (2, 24)
