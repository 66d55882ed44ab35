"""The training benchmark's own parts: the baseline that it trains in slices, and what it reads from a run that was killed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import baseline_run
import training_bench
import training_blocked
import training_faults
from baseline_model import START, UNKNOWN, Baseline, draw_caption
from belvedere_training.data.shapes import build_shapes

RECORD = {"captions": {"en": "red apple", "zh": "红苹果"}, "tags": {"en": ["fruit"], "zh": ["水果"]}}


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Keep the tiny steps on one thread, and give the others their threads back."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_a_group_measured_again_takes_the_place_of_its_rows_alone() -> None:
    before = [
        {"name": name, "value": 1, "commit": "old"}
        for name in ("itm_auc", "gone", "easy_vqa_accuracy", "hard_style_r5")
    ]
    after = training_bench.in_order(before, [{"name": "easy_vqa_accuracy", "value": 2}])
    assert [(row["name"], row["value"]) for row in after] == [
        ("hard_style_r5", 1),
        ("easy_vqa_accuracy", 2),
        ("itm_auc", 1),
    ]


def test_the_baseline_knows_whole_words_and_single_han_characters() -> None:
    model = Baseline({"red": 4, "红": 5})
    assert model.tokens(["Red plum", "红"]).tolist() == [[START, 4, UNKNOWN], [START, 5, 0]]


def test_the_baselines_texts_have_its_shares() -> None:
    texts = [draw_caption(RECORD, random.Random(number)) for number in range(4000)]
    shares = {text: texts.count(text) / len(texts) for text in set(texts)}
    assert shares == pytest.approx({"red apple": 0.45, "red apple fruit": 0.2, "fruit": 0.1, "红苹果": 0.25}, abs=0.03)


@pytest.mark.usefixtures("one_thread")
def test_a_baseline_run_in_slices_is_the_unbroken_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baseline_run, "BATCH", 4)
    monkeypatch.setattr(baseline_run.Run, "_seconds", lambda _, *, half: float(half))  # fp32, without trying both
    folder = build_shapes(tmp_path / "shapes")
    for name in ("unbroken", "sliced"):
        (tmp_path / name).mkdir()

    def run(name: str) -> baseline_run.Run:
        return baseline_run.Run(folder, tmp_path / name, pairs=8)

    unbroken, cut_off = run("unbroken"), run("sliced")
    assert unbroken.go_on(1e9)
    cut_off._step()
    assert not cut_off.go_on(0)
    resumed = run("sliced")
    assert resumed.step == 1
    assert resumed.go_on(1e9)
    for name, weight in unbroken.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name


def test_points_lost_are_compared_seed_by_seed() -> None:
    row = training_blocked._row("lost", "pooled", {"full": [90.0, 80.0], "pooled": [89.0, 78.0], "top": [0.0, 0.0]})
    assert (row["value"], row["met"]) == (1.5, True)
    assert row["spread"] == pytest.approx(0.7071, abs=1e-3)


def test_what_a_kill_cost_is_read_from_what_the_run_says() -> None:
    events: list[dict[str, Any]] = [
        {"event": "progress", "pairs": 1280},
        {"event": "progress", "pairs": 1440},
        {"event": "resumed", "pairs": 1280},
        {"event": "progress", "pairs": 3840},
    ]
    assert training_faults.around_the_kill(events) == (1440, 1280)
    with pytest.raises(RuntimeError, match="never said"):
        training_faults.around_the_kill(events[:2])
