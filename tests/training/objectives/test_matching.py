"""Image-text matching: negatives are never true pairs, hard ones are likelier, and the head learns to tell."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from belvedere_training.model.vision_language import VisionLanguageModel
from belvedere_training.objectives.matching import derangement, hard_negatives, matching_loss, pair_loss


@settings(max_examples=50, deadline=None)
@given(count=st.integers(2, 20), seed=st.integers(0, 1000))
def test_a_derangement_moves_everything(count: int, seed: int) -> None:
    order = derangement(count, torch.Generator().manual_seed(seed)).tolist()
    assert sorted(order) == list(range(count))
    assert all(place != own for own, place in enumerate(order))


@settings(max_examples=30, deadline=None)
@given(count=st.integers(2, 10), seed=st.integers(0, 1000), scale=st.sampled_from([1.0, 100.0]))
def test_a_negative_is_never_a_pair_that_belongs_together(count: int, seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    image, text = (functional.normalize(torch.randn(count, 4, generator=generator), dim=-1) for _ in range(2))
    same = torch.rand(count, count, generator=generator) < 0.3
    same = same | same.T | torch.eye(count, dtype=torch.bool)
    found = hard_negatives(image, text, torch.tensor(scale), same, generator)
    for row in range(count):
        assert bool(found.found_B[row]) == bool((~same[row]).any())
        if found.found_B[row]:
            assert not same[row, found.text_B[row]]
            assert not same[row, found.image_B[row]]


def test_likelier_pairs_are_drawn_more_often() -> None:
    image = functional.normalize(torch.tensor([[1.0, 0.0]] * 3), dim=-1)
    text = functional.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.2], [-1.0, 0.0]]), dim=-1)
    same, generator = torch.eye(3, dtype=torch.bool), torch.Generator().manual_seed(0)
    drawn = [int(hard_negatives(image, text, torch.tensor(3.0), same, generator).text_B[0]) for _ in range(60)]
    assert drawn.count(1) > 50


def test_one_logit_and_two_classes_are_the_same_loss() -> None:
    logit, label = torch.randn(6), torch.tensor([1, 0, 1, 1, 0, 0])
    two = torch.stack([torch.zeros(6), logit], 1)
    torch.testing.assert_close(pair_loss(logit[:, None], label, "bce"), pair_loss(two, label, "ce"))


def test_the_head_learns_to_tell_pairs_from_mismatches(whole: VisionLanguageModel, draw: torch.Generator) -> None:
    """Ranking quality (AUC) above 0.9 where a colour belongs to a word."""
    optimizer = torch.optim.AdamW(whole.parameters(), lr=3e-3)
    colours = torch.randn(8, 3, 1, 1, generator=draw)

    def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        kind = torch.randint(0, 8, (12,), generator=draw)
        pixels = colours[kind] + 0.1 * torch.randn(12, 3, 32, 32, generator=draw)
        return pixels, torch.stack([torch.ones(12, dtype=torch.long), 10 + kind], 1), kind[:, None] == kind[None]

    for step in range(61):
        pixels, tokens, same = batch()
        image, text = whole.vision.encode(pixels), whole.text.encode(tokens)
        image_BE, text_BE = whole.project_image(image), whole.project_text(text)
        negatives = hard_negatives(image_BE, text_BE, whole.scale(), same, draw)
        loss, logits = matching_loss(whole, image, text, negatives)
        if step < 60:
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    positive, negative = logits[:12], logits[12:]
    assert (positive[:, None] > negative[None]).float().mean() > 0.9


def test_a_batch_of_one_caption_costs_only_its_positives(whole: VisionLanguageModel, draw: torch.Generator) -> None:
    image, text = whole.vision.encode(torch.randn(2, 3, 32, 32)), whole.text.encode(torch.tensor([[1, 5], [1, 5]]))
    all_same = torch.ones(2, 2, dtype=torch.bool)
    negatives = hard_negatives(whole.project_image(image), whole.project_text(text), whole.scale(), all_same, draw)
    loss, logits = matching_loss(whole, image, text, negatives)
    assert logits.shape == (2,)
    assert bool(loss.isfinite())
    assert loss.item() == pytest.approx(functional.softplus(-logits).mean().item(), rel=1e-4)
