"""The recipe over drawn shapes: it resumes exactly, learns, publishes what serving needs, and names what is wrong."""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from belvedere_platform.artifacts import ArtifactStore
from belvedere_platform.resources.training_data import TrainingData
from belvedere_platform.resources.training_run import Architecture
from belvedere_training.config import RunConfig, resolve
from belvedere_training.loop import Loop
from belvedere_training.model.config import ModelConfig
from belvedere_training.model.files import load_artifact
from belvedere_training.model.normalization import normalise
from belvedere_training.model.spatial import stage_at
from belvedere_training.model.tokenizer import encode
from belvedere_training.recipe import prepare, train, watched_split
from belvedere_training.step import Diverged, Stepper
from belvedere_training.world import LocalWorld

Configure = Callable[..., RunConfig]
Configured = Callable[..., RunConfig]
Resumed = Callable[[RunConfig, ArtifactStore, Path], tuple[Loop, Loop]]


def test_a_resumed_run_equals_the_unbroken_one_bit_for_bit(
    store: ArtifactStore, tiny: ModelConfig, run_config: Configure, resumed: Resumed, tmp_path: Path
) -> None:
    resumed(resolve(run_config(), store), store, tmp_path / "state")


def test_pictures_are_coarse_for_a_share_of_the_budget_and_whole_after_it(
    store: ArtifactStore, tiny: ModelConfig, run_config: Configure
) -> None:
    loop = prepare(resolve(run_config(coarseShare=0.5), store), store, LocalWorld(cores=1))
    loop.run(until=32)
    assert loop.stepper._view(16).pixels_B3SS.shape[-1] == 32
    assert loop.stepper._view(32).pixels_B3SS.shape[-1] == 64
    loop.run()


def test_several_texts_a_picture_cost_what_each_would_cost_alone(
    store: ArtifactStore, tiny: ModelConfig, run_config: Configure
) -> None:
    def begun(texts: int, chunk: int = 0) -> Stepper:
        config = run_config(textsPerPicture=texts, chunkSize=chunk, precision="fp32")
        return prepare(resolve(config, store), store, LocalWorld(cores=1)).stepper

    one, two, chunked = begun(1), begun(2), begun(2, chunk=4)
    view = two._view(0)
    assert torch.equal(
        view.tokens_BT, one._view(0).tokens_BT
    )  # the first texts are those of a run without further ones
    pairs = zip((view.tokens_BT, *view.further), view.same, strict=True)
    alone = [view._replace(tokens_BT=tokens_BT, same=(same_GG,), further=()) for tokens_BT, same_GG in pairs]
    for stepper in (one, two, chunked):
        stepper.model.eval()  # statistics of a chunk are not those of the batch
    both = two._at_once(view, ())
    assert both == pytest.approx(sum(one._at_once(single, ()) for single in alone) / 2, rel=1e-6)
    assert chunked._in_chunks(view, ()) == pytest.approx(both, rel=1e-5)
    for mean, total, pieces in zip(*(made.model.parameters() for made in (two, one, chunked)), strict=True):
        assert mean.grad is not None
        assert total.grad is not None
        torch.testing.assert_close(mean.grad, total.grad / 2, rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(pieces.grad, mean.grad, rtol=1e-3, atol=1e-6)


def test_a_checkpoint_of_another_configuration_is_left_alone(
    store: ArtifactStore, tiny: ModelConfig, run_config: Configure, tmp_path: Path
) -> None:
    prepare(resolve(run_config(), store), store, LocalWorld(tmp_path, cores=1)).run(until=32)
    other = resolve(run_config(seed=1), store)
    assert prepare(other, store, LocalWorld(tmp_path, cores=1)).progress.pairs == 0


def test_the_split_that_a_gate_judges_is_watched_while_training() -> None:
    splits = ("hard_style", "heldout_concepts", "heldout_style")
    assert watched_split(splits, ["loss", "heldout_style_en_r1", "hard_style_en_r1"]) == "heldout_style"
    assert watched_split(splits, []) == "hard_style"
    assert watched_split((), ["heldout_style_en_r1"]) is None


@pytest.mark.slow
def test_it_learns_and_publishes(
    store: ArtifactStore, tiny: ModelConfig, run_config: Configure, capsys: pytest.CaptureFixture[str]
) -> None:
    descriptor = train(run_config(pairs=1600, learningRate=0.003), store, LocalWorld(cores=1))
    assert descriptor is not None
    config = store.config("runs/default/trial/1")
    assert config["metrics"]["heldout_style_en_r5"] > 0.25, "of 40 pictures; chance is 0.125"
    assert config["pairs"] == 1600
    assert config["imagesPerSecond"] > 0
    assert set(config["lineage"]) == {"trainingRun", "dataDigest", "configDigest"}
    curves = json.loads(store.read(descriptor.digest, "curves.json"))
    assert curves["loss"][-1][1] < curves["loss"][0][1]
    events = [json.loads(line)["event"] for line in capsys.readouterr().out.splitlines()]
    assert events[0] == "execution"
    assert events[-1] == "published"


@pytest.mark.slow
def test_exported_towers_say_what_the_model_says(
    store: ArtifactStore, tiny: ModelConfig, run_config: Configure
) -> None:
    train(run_config(), store, LocalWorld(cores=1))
    tag = "runs/default/trial/1"
    loaded = load_artifact(store, tag)
    programs = {
        name: torch.export.load(io.BytesIO(store.read(tag, f"{name}.pt2"))).module()
        for name in ("embed_text", "embed_image")
    }
    for rows in (1, 5):
        pixels = torch.randn(rows, 3, 64, 64)
        torch.testing.assert_close(programs["embed_image"](pixels), loaded.model.embed_image(pixels))
        tokens = encode(loaded.tokenizer, ["red circle", "红色圆形", "a", "zebra", "slow blue arrow"][:rows])
        torch.testing.assert_close(programs["embed_text"](tokens), loaded.model.embed_text(tokens))
    parity = [json.loads(line) for line in store.read(tag, "parity.jsonl").splitlines()]
    assert {line["id"] for line in parity if "text" in line} == {line["id"] for line in parity if "image" in line}


@pytest.mark.slow
def test_a_second_version_stays_near_its_parent(store: ArtifactStore, tiny: ModelConfig, run_config: Configure) -> None:
    train(run_config(pairs=800, learningRate=0.003), store, LocalWorld(cores=1))
    store.tag("runs/default/trial/1", "models/v1")

    def cosine(weight: float) -> float:
        second = RunConfig.model_validate(
            {
                **run_config(pairs=800, learningRate=0.003, seed=1).model_dump(
                    by_alias=True, exclude={"initialize_from"}
                ),
                "run": {"name": f"second-{weight}"},
                "initializeFrom": {"modelVersion": "v1", "compatibilityWeight": weight},
            }
        )
        loop = prepare(resolve(second, store), store, LocalWorld(cores=1))
        loop.run()
        child, parent = loop.stepper.model.eval(), load_artifact(store, "models/v1")
        tokens = encode(parent.tokenizer, ["red circle", "蓝色箭头", "green", "紫色正方形"])
        with torch.no_grad():
            return float((parent.model.embed_text(tokens) * child.embed_text(tokens)).sum(-1).min())

    free, held = cosine(0.0), cosine(10.0)
    assert held > 0.9
    assert held > free


def test_a_loss_that_is_no_number_stops_the_run(
    store: ArtifactStore, tiny: ModelConfig, run_config: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # where the batch is left for whoever reads the message
    loop = prepare(resolve(run_config(), store), store, LocalWorld(cores=1))
    with torch.no_grad():
        loop.stepper.model.text_projection.weight.fill_(float("nan"))
    with pytest.raises(
        Diverged, match=r"the loss is nan after 0 pairs: lower optimization\.learningRate \(now 0\.001\)"
    ):
        loop.run()


def test_a_loss_that_is_no_number_on_one_worker_ends_all(
    store: ArtifactStore, tiny: ModelConfig, run_config: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    stepper = prepare(resolve(run_config(), store), store, LocalWorld(cores=1)).stepper
    monkeypatch.setattr("belvedere_training.step.mean_over_workers", lambda value, world: value + float("inf"))
    with pytest.raises(Diverged, match=r"the loss of another worker is no number; here it is \d+"):
        stepper.step(0)


def test_pictures_and_texts_are_varied_as_the_data_says(
    store: ArtifactStore, tiny: ModelConfig, run_config: Configure
) -> None:
    still = {name: 0 for name in ("rotation", "shift", "brightness", "colorShift", "grayShare")}
    data = {
        "augmentation": {**still, "smallest": 1, "largest": 1},
        "texts": {"englishShare": 1, "captionAlone": 1, "captionDropped": 0},
    }
    config = run_config()
    config = config.model_copy(
        update={
            "data": TrainingData.model_validate({"dataset": config.data.dataset, **data}),
            "architecture": Architecture(max_length=7),
        }
    )
    stepper = prepare(resolve(config, store), store, LocalWorld(cores=1)).stepper
    batch = stepper.loader.batch(0)
    corpus = stepper.corpus
    expected = normalise(corpus.pixels(batch.pairs.pictures), stepper.model.config.normalization)
    assert torch.allclose(batch.pixels_B3SS, expected, atol=1e-5)
    assert [corpus.records[row]["captions"]["en"] for row in batch.pairs.pictures] == list(batch.pairs.texts)
    assert stepper.model.config.text.max_length == 7
    assert batch.tokens_BT.shape[1] <= 7


def test_the_recipe_makes_the_losses_that_it_always_made(
    store: ArtifactStore, tiny: ModelConfig, run_config: Configure
) -> None:
    """A change of these figures is a change of results: it needs a curve in training/LOG.md."""
    loop = prepare(resolve(run_config(), store), store, LocalWorld(cores=1))
    losses = [loop.stepper.step(position) for position in (0, 16, 32, 48)]
    assert losses == pytest.approx([4.6693959, 4.6502190, 3.2237661, 3.1095662], rel=1e-4)


MULTI: dict[str, Any] = {
    "architecture": {"topology": "fusion", "tower": "vit", "itmHead": "ce"},
    "objectives": {"itm": 1, "lm": 1, "mlm": 0.5, "mim": 0.5, "groupsPerStep": 2, "distillation": 0.4, "queueSize": 24},
}


def with_all_objectives(config: RunConfig, **optimization: object) -> RunConfig:
    document = config.model_dump(by_alias=True)
    document["optimization"] |= {"chunkSize": 8, "clip": "perTower", "recompute": True, **optimization}
    return RunConfig.model_validate({**document, **MULTI})


def test_a_run_with_every_objective_teacher_and_chunks_resumes_bit_for_bit(
    store: ArtifactStore, tiny_vit: None, run_config: Configure, resumed: Resumed, tmp_path: Path
) -> None:
    config = resolve(with_all_objectives(run_config(), questionsPerPicture=3), store)
    unbroken, second = resumed(config, store, tmp_path / "state")
    assert second.stepper.teacher is not None
    assert unbroken.stepper.teacher is not None
    for name, tensor in unbroken.stepper.teacher.state_dict().items():
        assert torch.equal(tensor, second.stepper.teacher.state_dict()[name]), name
    assert set(unbroken.stepper.told["gradient_norms"]) == {"vision", "text", "cross"}
    assert unbroken.stepper.model.match_head.out_features == 2, "architecture.itmHead is ce"


def test_weights_are_unfrozen_from_the_heads_down(
    store: ArtifactStore, tiny: ModelConfig, run_config: Configure
) -> None:
    loop = prepare(resolve(run_config(unfreezeEveryPairs=16), store), store, LocalWorld(cores=1))
    before = {name: weight.clone() for name, weight in loop.stepper.model.named_parameters()}
    loop.stepper.step(0)
    changed = {n for n, weight in loop.stepper.model.named_parameters() if not torch.equal(weight, before[n])}
    assert changed == {"vision_projection.weight", "text_projection.weight", "log_scale"}
    loop.stepper.step(16)
    changed = {n for n, weight in loop.stepper.model.named_parameters() if not torch.equal(weight, before[n])}
    assert "text.layers.0.mlp.0.weight" in changed
    assert "text.embedding.weight" not in changed


def test_disentangling_is_one_line_its_loss_falls_and_each_part_knows_its_attribute(
    configured: Configured, store: ArtifactStore, tiny: ModelConfig, run_config: Configure
) -> None:
    asked = {"disentangle": 1, "attributes": ["style", "subgroup", "group"]}
    config = configured(run_config(pairs=960, learningRate=0.003, warmupPairs=96), objectives=asked)
    loop = prepare(resolve(config, store), store, LocalWorld(cores=1))
    stepper, told = loop.stepper, []
    attributes = stepper.model.config.parts.attributes
    assert set(attributes) == {"style", "subgroup"}, "all drawings are of one group"
    for position in range(0, 960, 16):
        stepper.step(position)
        told.append(stepper.told["losses"]["disentangle"])
    assert sum(told[-10:]) < 0.8 * sum(told[:10])
    batches = [stepper.loader.make(position) for position in range(0, 96, 16)]
    right = {
        name: torch.cat([
            stepper.model.disentangler.classifiers[name](
                stepper.model.disentangler(stepper.model.embed_image(batch.pixels_B3SS)).specific[name]
            ).argmax(1) == batch.attributes[name]
            for batch in batches
        ]).float().mean()
        for name in attributes
    }  # fmt: skip
    for name, values in attributes.items():
        assert right[name] > 1.3 / len(values), (name, right[name])


def test_plain_pictures_are_trained_on_at_half_their_edge_and_the_loss_falls(
    configured: Configured,
    store: ArtifactStore,
    tiny_vit: None,
    run_config: Configure,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("belvedere_training.step.THRESHOLDS", (0.7, 0.9))  # drawings have less than two bits
    asked = configured(
        run_config(pairs=640, learningRate=0.005, warmupPairs=64, resolution="ByEntropy"),
        architecture={"tower": "vit", "topology": "fusion"},
        objectives={"itm": 1},
    )
    stepper = prepare(resolve(asked, store), store, LocalWorld(cores=1)).stepper
    losses, seen = [], set[str]()
    for position in range(0, 640, 16):
        losses.append(stepper.step(position))
        seen |= set(stepper.told["resolutions"])
        assert sum(stepper.told["resolutions"].values()) == pytest.approx(1)
    assert seen == {"32", "48", "64"}
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])


def test_a_run_in_stages_learns_a_view_and_then_everything_at_any_resolution(
    configured: Configured,
    store: ArtifactStore,
    tiny_vit: None,
    run_config: Configure,
    tmp_path: Path,
) -> None:
    changes = {"pairs": 640, "learningRate": 0.005, "warmupPairs": 64, "resolution": "Progressive", "seed": 1}
    config = resolve(configured(run_config(**changes), architecture={"tower": "vit"}), store)
    loop = prepare(config, store, LocalWorld(cores=1))
    stepper, losses, moved = loop.stepper, list[float](), dict[str, set[str]]()
    seen = set[str]()
    for position in range(0, 640, 16):
        before = {name: weight.clone() for name, weight in stepper.model.vision.named_parameters()}
        losses.append(stepper.step(position))
        changed = {
            n.partition(".")[0] for n, w in stepper.model.vision.named_parameters() if not torch.equal(w, before[n])
        }
        moved.setdefault(stage_at(position, 640), set()).update(changed)
        seen |= set(stepper.told.get("resolutions", ()))
    assert "view" not in moved["fixed"]
    assert moved["warped"] == {"view"}
    assert moved["joint"] > {"view", "layers"}
    assert seen == {"32", "48", "64"}
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])
    for begins in (20, 28):
        assert sum(losses[begins : begins + 4]) < 1.25 * sum(losses[begins - 4 : begins]), "the loss goes on"

    first = prepare(config, store, LocalWorld(tmp_path / "state", cores=1))
    first.run(until=336)
    second = prepare(config, store, LocalWorld(tmp_path / "state", cores=1))
    second.run()
    for name, weight in stepper.model.state_dict().items():
        assert torch.equal(weight, second.stepper.model.state_dict()[name]), name
