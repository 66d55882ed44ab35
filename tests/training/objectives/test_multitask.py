"""Several objectives in one step: the same draw everywhere, every head learns, and wrong mixtures are refused."""

from __future__ import annotations

import pytest
import torch

from belvedere_platform.errors import InvalidInput
from belvedere_platform.resources.training_run import Objectives
from belvedere_training.data.loader import Said
from belvedere_training.model.config import sized
from belvedere_training.model.vision_language import VisionLanguageModel
from belvedere_training.objectives.multitask import MultiTask, Outputs, any_asked, check, drawn
from next_words import next_word_loss

ALL = Objectives(itm=1, lm=1, mlm=0.5, mim=0.5, groups_per_step=3)


def test_every_head_receives_a_gradient(whole: VisionLanguageModel, draw: torch.Generator) -> None:
    module = MultiTask(whole, 299)
    tokens = torch.randint(2, 299, (4, 10), generator=draw)
    tokens[:, 0] = 1
    terms = drawn(ALL, 0, 0)
    outputs = module(
        torch.randn(4, 3, 32, 32), tokens, Said(None, tokens > 0), torch.eye(4, dtype=torch.bool), terms, draw
    )
    assert set(outputs.losses) == {"itm", "lm", "mlm", "mim", "unused"}
    assert outputs.losses["unused"].item() == 0
    total = sum(outputs.losses.values()) + (outputs.scale * outputs.image_BE * outputs.text_BE).sum()
    total.backward()
    for name, parameter in whole.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_words_are_learned_from_what_is_said_and_contrast_from_the_caption(
    whole: VisionLanguageModel, draw: torch.Generator
) -> None:
    module, pixels, same = MultiTask(whole, 299).eval(), torch.randn(2, 3, 32, 32), torch.eye(2, dtype=torch.bool)
    captions, said = torch.tensor([[1, 5], [1, 6]]), torch.tensor([[1, 7, 8, 9], [1, 9, 8, 0]])

    def outputs(contrasted: torch.Tensor, words: Said) -> Outputs:
        found: Outputs = module(pixels, contrasted, words, same, ("lm",), draw)
        return found

    apart = outputs(captions, Said(said, said > 0))
    assert torch.equal(apart.text_BE, outputs(captions, Said(None, captions > 0)).text_BE)
    assert torch.equal(apart.losses["lm"], outputs(said, Said(None, said > 0)).losses["lm"])


def test_questions_of_one_picture_are_answered_as_if_each_had_a_picture_of_its_own(
    whole: VisionLanguageModel, draw: torch.Generator
) -> None:
    module, pixels = MultiTask(whole, 299).eval(), torch.randn(2, 3, 32, 32, generator=draw)
    captions, same = torch.tensor([[1, 5], [1, 6]]), torch.eye(2, dtype=torch.bool)
    said = torch.tensor([[1, 7, 8, 9], [1, 9, 8, 0], [1, 7, 8, 9], [1, 7, 5, 4]])
    asked = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 0], [0, 0, 1, 1], [0, 1, 1, 1]]).bool()
    together = module(pixels, captions, Said(said, asked, 2), same, ("lm",), draw).losses["lm"]
    logits = whole.words(whole.fuse(pixels.repeat_interleave(2, 0), said, causal=True).text_BTD)
    torch.testing.assert_close(together, next_word_loss(logits, said, asked_BT=asked))
    hidden = module(pixels, captions, Said(said, asked, 2), same, ("mlm",), draw.manual_seed(1)).losses["mlm"]
    copied = module(
        pixels.repeat_interleave(2, 0),
        captions.repeat_interleave(2, 0),
        Said(said, asked),
        torch.eye(4, dtype=torch.bool),
        ("mlm",),
        draw.manual_seed(1),
    )
    torch.testing.assert_close(hidden, copied.losses["mlm"])


def test_weights_that_no_term_used_get_a_gradient_of_zero(whole: VisionLanguageModel, draw: torch.Generator) -> None:
    same, tokens = torch.eye(2, dtype=torch.bool), torch.tensor([[1, 5], [1, 6]])
    outputs = MultiTask(whole, 299)(torch.randn(2, 3, 32, 32), tokens, Said(None, tokens > 0), same, (), draw)
    (outputs.image_BE.sum() + outputs.losses["unused"]).backward()
    gradient = whole.match_head.weight.grad
    assert gradient is not None
    assert not gradient.any()


def test_the_draw_is_a_function_of_seed_and_position() -> None:
    one = Objectives(itm=1, lm=1, mlm=1, mim=1)
    steps = [drawn(one, 3, position) for position in range(0, 640, 16)]
    assert steps == [drawn(one, 3, position) for position in range(0, 640, 16)]
    assert set(steps) == {("itm", "lm"), ("mlm",), ("mim",)}
    assert drawn(Objectives(), 3, 0) == ()
    assert not any_asked(Objectives(distillation=0.4))


@pytest.mark.parametrize(
    ("objectives", "size", "message"),
    [
        (Objectives(itm=1), {}, r"objectives\.itm is 1 and architecture\.topology is dual"),
        (Objectives(mim=1), {"topology": "fusion"}, r"objectives\.mim is 1: it needs architecture\.tower vit"),
    ],
)
def test_an_objective_without_its_head_is_refused(objectives: Objectives, size: dict[str, str], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        check(objectives, sized("nano", **size))  # type: ignore[arg-type]
