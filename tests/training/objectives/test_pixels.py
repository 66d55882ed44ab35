"""Hidden patches: how many, that only they cost, and that the encoder does not see them."""

from __future__ import annotations

import torch

from belvedere_training.model.patches import patchify
from belvedere_training.model.vision_language import VisionLanguageModel
from belvedere_training.objectives.pixels import masked_image_loss, masked_patch_loss, split_patches


def test_147_of_196_patches_are_hidden_and_others_in_each_picture(draw: torch.Generator) -> None:
    split = split_patches(3, 196, draw)
    assert split.asked_BN.sum(1).tolist() == [147] * 3
    assert split.kept_BK.shape == (3, 49)
    assert not torch.equal(split.asked_BN[0], split.asked_BN[1])
    assert not split.asked_BN.gather(1, split.kept_BK).any()


def test_visible_patches_carry_no_loss() -> None:
    predicted = torch.randn(2, 4, 6, requires_grad=True)
    asked = torch.tensor([[True, False, True, True], [True, True, False, True]])
    masked_patch_loss(predicted, torch.randn(2, 4, 6), asked).backward()  # type: ignore[no-untyped-call]
    assert predicted.grad is not None
    assert not predicted.grad[~asked].any()
    assert predicted.grad[asked].all()


def test_the_encoder_sees_visible_patches_only_and_the_mask_token_is_learned(whole: VisionLanguageModel) -> None:
    pixels = torch.randn(1, 3, 32, 32)
    kept = split_patches(1, 16, torch.Generator().manual_seed(3)).kept_BK
    seen = []

    def look(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        seen.append(inputs[0])

    whole.vision.embed.register_forward_pre_hook(look)
    masked_image_loss(whole, pixels, torch.Generator().manual_seed(3)).backward()  # type: ignore[no-untyped-call]
    assert torch.equal(seen[0][0], patchify(pixels, 8)[0, kept[0]])
    assert whole.pixel_decoder.mask_token_D.grad.abs().sum() > 0  # type: ignore[union-attr]


def test_it_learns_to_paint(whole: VisionLanguageModel, draw: torch.Generator) -> None:
    rows = torch.linspace(-1, 1, 32)
    pixels = torch.stack([torch.outer(rows, rows), torch.outer(rows, -rows), rows.expand(32, 32)])[None]
    optimizer = torch.optim.AdamW(whole.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = masked_image_loss(whole, pixels, draw)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
