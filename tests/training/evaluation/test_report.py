"""The whole evaluation of an untrained model: every measure is there, and the page holds what it shows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from belvedere_platform.artifacts import ArtifactKind, ArtifactStore
from belvedere_platform.errors import InvalidInput
from belvedere_training.commands.evaluate import evaluate
from belvedere_training.data.corpus import corpus_texts, load_split
from belvedere_training.evaluation.page import by_split, card, page, table
from belvedere_training.evaluation.run import evaluate_on
from belvedere_training.model.config import ConvConfig, ModelConfig
from belvedere_training.model.files import LoadedModel, save
from belvedere_training.model.tokenizer import learn
from belvedere_training.model.vision_language import VisionLanguageModel


@pytest.fixture
def loaded(shapes_folder: Path, tiny_config: ModelConfig) -> LoadedModel:
    tokenizer = learn(corpus_texts(load_split(shapes_folder, "train")), 400, 12)
    text = tiny_config.text.model_copy(update={"vocab_size": tokenizer.get_vocab_size()})
    return LoadedModel(
        model=VisionLanguageModel(tiny_config.model_copy(update={"text": text})).eval(), tokenizer=tokenizer
    )


def test_the_command_measures_and_writes_a_page_of_its_own(
    loaded: LoadedModel, store: ArtifactStore, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    files = save(loaded.model, loaded.tokenizer, tmp_path)
    store.push(ArtifactKind.MODEL, dict(files), config={}, tag="models/tiny")
    words = ["models/tiny", "--data", "shapes", "--report", str(tmp_path / "out"), "-o", "json"]
    result = CliRunner().invoke(evaluate, [*words, "--artifacts", store.url])
    assert result.exit_code == 0, result.output
    metrics = json.loads(result.stdout)["metrics"]
    for name in (
        "heldout_style_en_r1",
        "hard_style_zh_i2t_r10",
        "heldout_style_en_zeroshot_top1",
        "heldout_style_en_zeroshot_one_prompt_top1",
        "hard_style_en_similarity_auc",
        "heldout_concepts_zh_modality_gap",
        "hard_style_en_r5_kept",
    ):
        assert 0 <= metrics[name] <= 2, name
    text = (tmp_path / "out" / "evaluation.html").read_text()
    assert "src='http" not in text
    assert text.count("data:image/png;base64,") > 20
    assert (tmp_path / "out" / "recall.png").read_bytes().startswith(b"\x89PNG")


def test_hits_come_first_and_misses_last(loaded: LoadedModel, shapes_folder: Path) -> None:
    result = evaluate_on(loaded, shapes_folder, splits=["heldout_style"], examples=3)
    assert all(query.rank == 0 for query in result.hits["heldout_style"])
    places = [query.rank for query in result.misses["heldout_style"]]
    assert places == sorted(places, reverse=True)
    assert places[0] > 0


def test_pictures_of_another_size_are_refused(loaded: LoadedModel, shapes_folder: Path) -> None:
    vision = ConvConfig(image_size=32, stem_width=8, widths=(8, 16), blocks=(1, 1), pooled_width=16)
    config = loaded.model.config.model_copy(update={"vision": vision})
    other = LoadedModel(model=VisionLanguageModel(config), tokenizer=loaded.tokenizer)
    with pytest.raises(InvalidInput, match="build the data set with --size 32"):
        evaluate_on(other, shapes_folder)


def test_pages_escape_what_they_show() -> None:
    text = page("<b>", [table(("a",), [("<i>",)]), card("<u>", [])])
    assert not {"<b>", "<i>", "<u>"} & {text[at : at + 3] for at in range(len(text))}


def test_metrics_go_to_the_split_with_the_longest_name() -> None:
    found = by_split({"heldout_en_r1": 0.1, "heldout_style_en_r1": 0.2}, ["heldout", "heldout_style"])
    assert found == {"heldout": {"en_r1": 0.1}, "heldout_style": {"en_r1": 0.2}}
