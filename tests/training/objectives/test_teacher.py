"""The slow copy and its queue: exact arithmetic, no gradient, round and round, and all of it in the state."""

from __future__ import annotations

import torch
from torch.nn import functional

from belvedere_training.model.vision_language import VisionLanguageModel
from belvedere_training.objectives.contrastive import contrastive_loss
from belvedere_training.objectives.teacher import Teacher, distilled_loss


def test_each_weight_follows_exactly(whole: VisionLanguageModel) -> None:
    teacher = Teacher(whole, 8, momentum=0.9)
    before = {name: weight.clone() for name, weight in teacher.model.named_parameters()}
    with torch.no_grad():
        for parameter in whole.parameters():
            parameter.add_(1.0)
    teacher.follow(whole)
    for name, parameter in whole.named_parameters():
        expected = before[name] * 0.9 + parameter * (1 - 0.9)
        torch.testing.assert_close(dict(teacher.model.named_parameters())[name], expected, rtol=0, atol=1e-6)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_the_queue_goes_round_with_batches_that_do_not_divide_it(whole: VisionLanguageModel) -> None:
    teacher = Teacher(whole, 5)
    written = torch.arange(9.0)[:, None].expand(9, 16)
    for start in (0, 3, 6):
        teacher.remember(written[start : start + 3], -written[start : start + 3])
    image, text = teacher.queue()
    assert sorted(image[:, 0].tolist()) == [4, 5, 6, 7, 8]
    assert torch.equal(text, -image)


def test_the_state_holds_copy_queue_and_place(whole: VisionLanguageModel) -> None:
    teacher = Teacher(whole, 5)
    teacher.remember(torch.ones(3, 16), torch.ones(3, 16))
    again = Teacher(VisionLanguageModel(whole.config), 5)
    again.load_state_dict(teacher.state_dict())
    assert int(again.cursor) == int(again.filled) == 3
    for name, value in teacher.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_without_belief_in_the_teacher_it_is_the_plain_contrast(whole: VisionLanguageModel) -> None:
    rows = [functional.normalize(torch.randn(4, 16), dim=-1) for _ in range(2)]
    scale = torch.tensor(7.0)
    loss = distilled_loss((rows[0], rows[1]), (rows[0], rows[1]), Teacher(whole, 0), scale, 0, alpha=0.0)
    torch.testing.assert_close(loss, contrastive_loss(rows[0], rows[1], scale))


def test_remembered_pairs_are_negatives_too(whole: VisionLanguageModel) -> None:
    teacher = Teacher(whole, 6)
    rows = [functional.normalize(torch.randn(3, 16), dim=-1) for _ in range(2)]
    pair, scale = (rows[0], rows[1]), torch.tensor(7.0)
    first, second = (distilled_loss(pair, pair, teacher, scale, 0, alpha=0.4) for _ in range(2))
    assert second > first
