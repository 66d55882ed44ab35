"""Words: the shares of hidden ones, who is asked, and that a text is learned from its picture."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from belvedere_training.model.attention import at
from belvedere_training.model.text import PAD_ID
from belvedere_training.model.vision_language import VisionLanguageModel
from belvedere_training.objectives.language import asked_places, asked_word_loss, hide_words
from next_words import next_word_loss

MASK_ID = 299


def test_hidden_words_are_masked_swapped_and_kept_in_the_shares_of_bert(draw: torch.Generator) -> None:
    tokens = torch.full((400, 500), 17)
    hidden = hide_words(tokens, MASK_ID, 300, draw)
    asked = hidden.tokens_BT[hidden.asked_BT]
    assert hidden.asked_BT.float().mean() == pytest.approx(0.15, abs=0.01)
    assert (asked == MASK_ID).float().mean() == pytest.approx(0.8, abs=0.01)
    assert (asked == 17).float().mean() == pytest.approx(0.1, abs=0.01)
    assert torch.equal(hidden.tokens_BT[~hidden.asked_BT], tokens[~hidden.asked_BT])


def test_padding_and_the_start_are_never_asked(draw: torch.Generator) -> None:
    tokens = torch.tensor([[1, 5, PAD_ID]]).repeat(500, 1)
    hidden = hide_words(tokens, MASK_ID, 300, draw, share=0.9)
    assert not hidden.asked_BT[:, [0, 2]].any()
    assert hidden.asked_BT[:, 1].any()


def test_the_next_word_is_asked_and_padding_is_not() -> None:
    tokens = torch.tensor([[1, 5, 7, PAD_ID], [1, 6, PAD_ID, PAD_ID]])
    logits = torch.randn(2, 4, 9)
    share = logits.log_softmax(-1)
    expected = -(share[0, 0, 5] + share[0, 1, 7] + share[1, 0, 6]) / 3
    torch.testing.assert_close(next_word_loss(logits, tokens), expected)


def test_only_answers_cost_where_a_text_asks() -> None:
    tokens, logits = torch.tensor([[1, 5, 7, PAD_ID]]), torch.randn(1, 4, 9)
    asked = torch.tensor([[False, False, True, False]])
    expected = functional.cross_entropy(logits[0, 1:2], tokens[0, 2:3])
    torch.testing.assert_close(next_word_loss(logits, tokens, asked_BT=asked), expected)
    assert next_word_loss(logits, tokens, asked_BT=torch.zeros_like(asked)) == 0


@given(
    st.lists(st.lists(st.sampled_from(["said", "asked", "padding"]), min_size=3, max_size=3), min_size=1, max_size=5)
)
def test_places_before_asked_words_cost_what_all_places_do(kinds: list[list[str]]) -> None:
    tokens = torch.tensor([[1, *(PAD_ID if kind == "padding" else 4 for kind in row), 5] for row in kinds])
    asked = torch.tensor([[False, *(kind != "said" for kind in row), False] for row in kinds])
    logits = torch.randn(*tokens.shape, 9)
    found = asked_places(tokens, asked)
    shown = at(logits, found.place_BA)
    expected = next_word_loss(logits, tokens, asked_BT=asked)
    torch.testing.assert_close(asked_word_loss(shown, found.target_BA, found.real_BA), expected)


def test_only_words_that_were_asked_cost() -> None:
    logits, tokens = torch.randn(1, 3, 9, requires_grad=True), torch.tensor([[1, 5, 7]])
    asked = torch.tensor([[False, False, True]])
    loss = asked_word_loss(logits, tokens, asked)
    torch.testing.assert_close(loss, functional.cross_entropy(logits[0, 2:], tokens[0, 2:]))
    loss.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert not logits.grad[0, :2].any()


def test_nothing_asked_costs_nothing_and_gives_finite_gradients() -> None:
    logits = torch.randn(1, 3, 9, requires_grad=True)
    loss = asked_word_loss(logits, torch.tensor([[1, 5, 7]]), torch.zeros(1, 3, dtype=torch.bool))
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_words_are_learned_from_the_picture(whole: VisionLanguageModel, draw: torch.Generator) -> None:
    """Perplexity falls, and both losses are lower with the right picture than with another one."""
    optimizer = torch.optim.AdamW(whole.parameters(), lr=5e-3)
    colours = torch.randn(6, 3, 1, 1, generator=draw)
    kind = torch.arange(12) % 6
    tokens = torch.stack([torch.ones(12, dtype=torch.long), 10 + kind, torch.full((12,), 40)], 1)
    pixels = (colours[kind]).expand(12, 3, 32, 32)
    question = tokens.clone()
    question[:, 1] = MASK_ID
    asked = torch.zeros_like(tokens, dtype=torch.bool)
    asked[:, 1] = True

    def losses(seen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        said = next_word_loss(whole.words(whole.fuse(seen, tokens, causal=True).text_BTD), tokens)
        return said, asked_word_loss(whole.words(whole.fuse(seen, question).text_BTD), tokens, asked)

    first = losses(pixels)[0].item()
    for _ in range(60):
        optimizer.zero_grad()
        sum(losses(pixels)).backward()  # type: ignore[union-attr]
        optimizer.step()
    said, found = losses(pixels)
    said_wrong, found_wrong = losses(pixels.roll(1, 0))
    assert math.exp(said.item()) < math.exp(first) / 3
    assert said < said_wrong
    assert found < found_wrong
