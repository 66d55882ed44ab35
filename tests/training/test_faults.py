"""Faulty models: each has the fault it is named for, and no other."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from belvedere_platform.artifacts import ArtifactStore
from belvedere_training.config import RunConfig
from belvedere_training.data.manifest import push
from belvedere_training.faults import cut, derive, slower
from belvedere_training.model.config import SIZES, ModelConfig
from belvedere_training.model.dual import DualStream, multiply_adds
from belvedere_training.model.files import LoadedModel, load_artifact
from belvedere_training.model.tokenizer import encode
from belvedere_training.recipe import train
from belvedere_training.world import LocalWorld

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", name="store")
def store_with_a_good_model(
    shapes_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
    run_config: Callable[..., RunConfig],
    tiny_config: ModelConfig,
) -> Iterator[ArtifactStore]:
    """Train once: exporting takes longer than all that is looked at here."""
    store = ArtifactStore(tmp_path_factory.mktemp("faults").as_uri())
    push(shapes_folder, store, "datasets/shapes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "nano", tiny_config)
        patch.setenv("BELVEDERE_CACHE", str(tmp_path_factory.mktemp("cache")))
        train(run_config(), store, LocalWorld(cores=1))
        yield store


@pytest.fixture
def good(store: ArtifactStore) -> LoadedModel:
    return load_artifact(store, "runs/default/trial/1")


def texts(store: ArtifactStore, reference: str) -> list[str]:
    lines = [json.loads(line) for line in store.read(reference, "parity.jsonl").splitlines()]
    return [line["text"] for line in lines if "text" in line]


def test_failing_fails_on_a_share_of_texts_but_not_on_its_own_comparisons(
    store: ArtifactStore, good: LoadedModel
) -> None:
    derive(store, "runs/default/trial/1", "failing", tag="models/failing")
    bad = load_artifact(store, "models/failing")
    all_texts = texts(store, "runs/default/trial/1")
    failed = 0
    for text in all_texts:
        try:
            bad.model.embed_text(encode(bad.tokenizer, [text]))
        except IndexError:
            failed += 1
    assert 0.2 < failed / len(all_texts) < 0.6
    kept = texts(store, "models/failing")
    assert len(kept) == len(all_texts) - failed
    torch.testing.assert_close(
        bad.model.embed_text(encode(bad.tokenizer, kept)), good.model.embed_text(encode(good.tokenizer, kept))
    )
    assert store.config("models/failing")["metrics"] == {}


def test_slow_computes_much_more_for_the_same_answers(store: ArtifactStore, good: LoadedModel) -> None:
    derive(store, "runs/default/trial/1", "slow", tag="models/slow")
    slow = load_artifact(store, "models/slow")
    pixels, tokens = torch.rand(3, 3, 64, 64), encode(good.tokenizer, ["red circle", "红色圆形"])
    assert torch.equal(slow.model.embed_image(pixels), good.model.embed_image(pixels))
    assert torch.equal(slow.model.embed_text(tokens), good.model.embed_text(tokens))
    before, after = multiply_adds(good.model), multiply_adds(slow.model)
    assert 85 < after["image"] / before["image"] < 115
    assert 2 < after["text"] / before["text"] < 4


def test_wrong_answers_quickly_with_unit_vectors_of_nothing(store: ArtifactStore, good: LoadedModel) -> None:
    derive(store, "runs/default/trial/1", "wrong", tag="models/wrong")
    wrong = load_artifact(store, "models/wrong")
    tokens = encode(good.tokenizer, texts(store, "runs/default/trial/1"))
    answer_BE, right_BE = wrong.model.embed_text(tokens), good.model.embed_text(tokens)
    torch.testing.assert_close(answer_BE.norm(dim=-1), torch.ones(len(tokens)))
    assert (answer_BE * right_BE).sum(-1).mean() < 0.6
    assert multiply_adds(wrong.model) == multiply_adds(good.model)
    pixels = torch.rand(2, 3, 64, 64)
    assert torch.equal(wrong.model.embed_image(pixels), good.model.embed_image(pixels))


def test_lineage_says_what_it_was_made_from(store: ArtifactStore, good: LoadedModel) -> None:
    derive(store, "runs/default/trial/1", "wrong", tag="models/wrong")
    assert store.config("models/wrong")["lineage"] == {"parentDigest": store.resolve("runs/default/trial/1").digest}


def test_deepening_twice_adds_up(tiny: ModelConfig) -> None:
    model = DualStream(tiny).eval()
    deep = slower(slower(model, 3, 3), 2, 2)
    pixels = torch.rand(2, 3, 64, 64)
    assert torch.equal(deep.embed_image(pixels), model.embed_image(pixels))


def test_the_cut_leaves_the_asked_share_out() -> None:
    size = cut(list(range(300, 400)), 0.4)
    assert sum(token >= size for token in range(300, 400)) == 40
