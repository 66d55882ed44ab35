"""What a quarter of the image keys costs in right answers: the whole test set of easy-VQA, several seeds, mean and spread.

A small model answers from a question that looks at a picture's tokens once, by cross-attention over all of them, over means of 2x2, or
over the best quarter of blocks; all else is the same. 9,673 answers a seed: one standard error of a share of 0.9 is 0.3 points.
"""

from __future__ import annotations

import os
import random
import statistics

import torch
from click.testing import CliRunner
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional

from belvedere_platform.telemetry.benchmark import Row, result
from belvedere_training.commands.data import data
from belvedere_training.data.corpus import Corpus, corpus_texts, load_split, pull_dataset, resolve_dataset
from belvedere_training.evaluation.questions import Question, questions_of
from belvedere_training.model.blocked import quartered
from belvedere_training.model.config import HALF, Attend, TextConfig, VitConfig
from belvedere_training.model.fusion import FusionBlock
from belvedere_training.model.normalization import normalise
from belvedere_training.model.text import PAD_ID, TextTower
from belvedere_training.model.tokenizer import encode, learn
from belvedere_training.model.vit import VitTower
from belvedere_training.optimizer import Optimizers, schedule
from training_subject import Subject

# P pictures, Q questions about them, N image tokens, M keys, T text tokens, D width, C answers

NAMES = ("blocked_attention_points_lost", "best_blocks_points_lost")
SEEDS = tuple(range(int(os.environ.get("BELVEDERE_BENCH_BLOCKED_SEEDS", "3"))))
STEPS = int(os.environ.get("BELVEDERE_BENCH_BLOCKED_STEPS", "600"))
PICTURES, ASKED_OF_EACH, WIDTH, HEADS = 32, 6, 64, 2
KINDS: tuple[Attend, ...] = ("full", "pooled", "top")


class Answering(nn.Module):
    """A picture's tokens, a question's tokens that look at them once, and a class for each answer."""

    def __init__(self, attend: Attend, vocab_size: int, num_answers: int) -> None:
        super().__init__()
        self.attend: Attend = attend
        vision = VitConfig(image_size=64, patch_size=8, hidden_size=WIDTH, num_layers=2, num_heads=HEADS)
        text = TextConfig(vocab_size=vocab_size, max_length=20, hidden_size=WIDTH, num_layers=1, num_heads=HEADS)
        self.vision, self.text = VitTower(vision), TextTower(text)
        self.block, self.norm = FusionBlock(WIDTH, HEADS), nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, num_answers)

    def forward(self, pixels_P3SS: Tensor, tokens_QT: Tensor, picture_Q: Tensor) -> Tensor:
        """Return logits [Q, C]; picture_Q says which picture each question is about."""
        image, text = self.vision.encode(pixels_P3SS), self.text.encode(tokens_QT)
        keys_QMD = quartered(image.tokens_BTD[picture_Q], image.grid, self.attend, text.tokens_BTD)
        mask_Q11T = (tokens_QT != PAD_ID)[:, None, None]
        seen_QTD = self.norm(self.block(text.tokens_BTD, mask_Q11T, keys_QMD))
        logits_QC: Tensor = self.head(seen_QTD[:, 0])
        return logits_QC


def rows(subject: Subject) -> list[Row]:
    """Train each kind with each seed, and ask everything that the set asks."""
    torch.set_num_threads(1)
    CliRunner().invoke(data, ["build", "easy-vqa", "--artifacts", subject.store.url], catch_exceptions=False)
    folder = pull_dataset(subject.store, resolve_dataset(subject.store, "easy-vqa"))
    train, held_out = load_split(folder, "train"), load_split(folder, "heldout")
    tokenizer = learn(corpus_texts(train), 400, 20)
    found: dict[Attend, list[float]] = {kind: [] for kind in KINDS}
    for seed in SEEDS:
        for kind in KINDS:
            found[kind].append(100 * _share_right(kind, seed, tokenizer, train, held_out))
            print(f"  {kind}, seed {seed}: {found[kind][-1]:.2f} % right", flush=True)
    return [_row(name, kind, found) for name, kind in zip(NAMES, KINDS[1:], strict=True)]


def _row(name: str, kind: Attend, found: dict[Attend, list[float]]) -> Row:
    """Return the mean of what is lost seed by seed; the kinds of one seed have seen the same questions in the same order."""
    lost = [full - other for full, other in zip(found["full"], found[kind], strict=True)]
    note = (
        f"share of right answers in %, {len(lost)} seeds of {STEPS} steps: "
        + "; ".join(f"{one} {', '.join(f'{value:.2f}' for value in values)}" for one, values in found.items())
        + f"; lost seed by seed {', '.join(f'{value:.2f}' for value in lost)}"
    )
    spread = statistics.stdev(lost) if len(lost) > 1 else None
    return result(name, statistics.mean(lost), "points", "lower", 1.6, note=note, spread=spread)


def _share_right(attend: Attend, seed: int, tokenizer: Tokenizer, train: Corpus, held_out: Corpus) -> float:
    """Return the share of right answers to the held-out questions after training."""
    asked = questions_of(train)
    answers = sorted({question.answer for question in asked})
    of_picture: dict[int, list[Question]] = {}
    for question in asked:
        of_picture.setdefault(question.position, []).append(question)
    torch.manual_seed(seed)
    choose = random.Random(seed)
    model = Answering(attend, tokenizer.get_vocab_size(), len(answers)).train()
    optimizer = Optimizers(model, learning_rate=1e-3, weight_decay=0.05)
    for step in range(STEPS):
        positions = choose.sample(sorted(of_picture), PICTURES)
        drawn = [choose.sample(of_picture[one], min(ASKED_OF_EACH, len(of_picture[one]))) for one in positions]
        questions = [question for some in drawn for question in some]
        picture_Q = torch.tensor([number for number, some in enumerate(drawn) for _ in some])
        optimizer.set_rate(schedule(step + 1, STEPS // 10, STEPS))
        optimizer.zero_grad()
        logits_QC = model(normalise(train.pixels(positions), HALF), _tokens(tokenizer, questions), picture_Q)
        functional.cross_entropy(logits_QC, _right(answers, questions)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return _right_of(model.eval(), tokenizer, answers, held_out)


@torch.inference_mode()
def _right_of(model: nn.Module, tokenizer: Tokenizer, answers: list[str], held_out: Corpus) -> float:
    questions, right = questions_of(held_out), 0
    for start in range(0, len(questions), 256):
        part = questions[start : start + 256]
        positions = sorted({question.position for question in part})
        picture_Q = torch.tensor([positions.index(question.position) for question in part])
        logits_QC = model(normalise(held_out.pixels(positions), HALF), _tokens(tokenizer, part), picture_Q)
        right += int((logits_QC.argmax(1) == _right(answers, part)).sum())
    return right / len(questions)


def _tokens(tokenizer: Tokenizer, questions: list[Question]) -> Tensor:
    return encode(tokenizer, [question.text for question in questions], trim=True)


def _right(answers: list[str], questions: list[Question]) -> Tensor:
    return torch.tensor([answers.index(question.answer) for question in questions])
