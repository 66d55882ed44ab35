"""What each choice buys: a run that has ended is remembered."""

from __future__ import annotations

from pathlib import Path

import pytest

import ablation_bench
from ablation_bench import METRICS, TEACHER, recalls, rows_of
from belvedere_platform.artifacts import ArtifactStore
from belvedere_training.data.manifest import push
from belvedere_training.data.shapes import build_shapes
from belvedere_training.model.config import SIZES, ConvConfig, ModelConfig, TextConfig
from training_subject import Subject

TINY = ModelConfig(
    embed_dim=16,
    text=TextConfig(vocab_size=400, hidden_size=16, num_layers=1, num_heads=2, max_length=12),
    vision=ConvConfig(stem_width=8, widths=(8, 16), blocks=(1, 1), pooled_width=16),
)


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """Return drawn shapes under the name of the emoji set."""
    folder = tmp_path_factory.mktemp("ablation")
    store = ArtifactStore((folder / "artifacts").as_uri())
    push(build_shapes(folder / "shapes"), store, "datasets/emoji")
    return Subject(folder, store, None, 0)


@pytest.fixture(autouse=True)
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BELVEDERE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(SIZES, "nano", TINY)
    monkeypatch.setattr(ablation_bench, "SPLITS", ("heldout_style",))


def test_run_that_has_ended_is_not_run_again(tmp_path: Path, subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ablation_bench, "STATE", tmp_path)
    first = recalls(subject, TEACHER, 128, 1)
    assert set(first) == {TEACHER, "teacher_itself"}
    monkeypatch.setattr(ablation_bench, "trained", None)
    assert recalls(subject, TEACHER, 128, 1) == first
    with pytest.raises(TypeError):  # another budget is another run
        recalls(subject, TEACHER, 256, 1)


def test_rows_say_mean_least_and_most() -> None:
    rows = rows_of("recipe", [dict.fromkeys(METRICS, share) for share in (0.2, 0.6, 0.4)], 256)
    assert [row["value"] for row in rows] == [pytest.approx(0.4)] * len(METRICS)
    assert rows[0]["spread"] == [0.2, 0.6]
