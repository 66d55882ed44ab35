"""The curve of recall against compute: nothing that is kept is left out, costs are what is computed, and runs go on in slices."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import curve_bench
import curve_run
import sliced
from belvedere_platform.artifacts import ArtifactStore
from belvedere_platform.resources.training_run import Architecture, Objectives
from belvedere_platform.telemetry.benchmark import result
from belvedere_training.config import resolve
from belvedere_training.data.corpus import load_split, pull_dataset, resolve_dataset
from belvedere_training.data.manifest import push
from belvedere_training.data.shapes import build_shapes
from belvedere_training.model.config import SIZES, TOWERS, ConvConfig, ModelConfig, TextConfig, VitConfig
from belvedere_training.recipe import prepare
from belvedere_training.world import LocalWorld
from curve_bench import ASKED, METRICS, SPLITS, in_order, rows_of
from curve_plot import write_page
from curve_recipes import RECIPES, recipe_config
from curve_run import Budget, Curve, Plan, curve_of, evaluations, forward_multiply_adds
from training_subject import CONCEPTS

TEXT = TextConfig(vocab_size=400, hidden_size=16, num_layers=1, num_heads=2, max_length=12)
CONV = ModelConfig(
    embed_dim=16, text=TEXT, vision=ConvConfig(stem_width=8, widths=(8, 16), blocks=(1, 1), pooled_width=16)
)
VIT = ModelConfig(
    embed_dim=16,
    text=TEXT,
    vision=VitConfig(image_size=64, patch_size=16, hidden_size=32, num_layers=2, num_heads=2),
)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ArtifactStore:
    """Return a store that has the drawn shapes under the name of the emoji set, with a tiny nano model and state in slices."""
    monkeypatch.setenv("BELVEDERE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(SIZES, "nano", CONV)
    monkeypatch.setattr(sliced, "STATE", tmp_path / "state")
    monkeypatch.setattr(curve_run, "PILOT_STEPS", 2)
    monkeypatch.setattr(curve_run, "SAMPLES", 2)
    store = ArtifactStore((tmp_path / "artifacts").as_uri())
    push(build_shapes(tmp_path / "shapes"), store, f"datasets/{CONCEPTS}")
    return store


def test_every_size_tower_topology_and_objective_has_a_curve() -> None:
    configs = [recipe_config(name, 128_000) for name in RECIPES]
    towers = {(size, config.vision.kind) for size, config in SIZES.items()}
    towers |= {(size, tower) for size, others in TOWERS.items() for tower in others}
    assert {(c.size, c.architecture.tower or SIZES[c.size].vision.kind) for c in configs} == towers
    topologies = {c.architecture.topology or SIZES[c.size].topology for c in configs}
    assert topologies == set(Architecture.model_fields["topology"].annotation.__args__[0].__args__)
    weighed = {name for name, field in Objectives.model_fields.items() if field.default == 0}
    assert all(any(getattr(c.objectives, name) for c in configs) for name in weighed), weighed


def _by_hand(config: ModelConfig, length: int) -> float:
    """Return the multiply-adds of a picture of 64 pixels and a text of so many tokens, written out layer by layer."""
    text, width = config.text, config.text.hidden_size
    total = text.num_layers * length * (12 * width * width + 2 * length * width) + width * config.embed_dim
    vision = config.vision
    if vision.kind == "vit":
        width, tokens = vision.hidden_size, vision.grid**2
        total += tokens * 3 * vision.patch_size**2 * width
        total += vision.num_layers * tokens * (12 * width * width + 2 * tokens * width)
        pool = (
            10 * width * width + 2 * tokens * width * width + 2 * tokens * width
        )  # one query and the MLP; keys, values
        return total + pool + width * config.embed_dim
    assert vision.kind == "conv"
    edge, before = vision.image_size // 2, vision.stem_width
    total += edge**2 * 25 * 3 * before
    for after in vision.widths:
        edge //= 2
        total += edge**2 * (9 * before * after + 9 * after * after + before * after)
        before = after
    return total + before * edge**2 * vision.pooled_width + vision.pooled_width * config.embed_dim


@pytest.mark.parametrize("shape", [CONV, VIT])
def test_what_is_counted_is_what_the_layers_multiply(
    store: ArtifactStore, shape: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SIZES, "nano", shape)
    loop = prepare(resolve(recipe_config("nano", 12_800), store), store, LocalWorld(cores=1))
    stepper = loop.stepper
    before = {name: tensor.clone() for name, tensor in stepper.model.state_dict().items()}
    length = stepper.loader.batch(0).tokens_BT.shape[1]
    assert forward_multiply_adds(stepper, 0) == _by_hand(shape, length)
    assert stepper.module.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in stepper.model.state_dict().items())


def test_a_run_that_is_cut_off_shows_its_points_and_goes_on(store: ArtifactStore, tmp_path: Path) -> None:
    folder = pull_dataset(store, resolve_dataset(store, CONCEPTS))
    splits = {name: load_split(folder, "heldout_style") for name in SPLITS}

    def curve() -> Curve:
        return curve_of("nano", store, splits, budget=Budget(seconds=1e-9), points=2, folder=tmp_path / "curves")

    original = curve_run.trained

    def cut_off(*arguments: object, **options: object) -> object:
        begun = options.pop("begun")

        def ends(loop: object) -> None:
            begun(loop)  # type: ignore[operator]
            loop.world.notice.set()  # type: ignore[attr-defined]

        return original(*arguments, begun=ends, **options)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curve_run, "trained", cut_off)
        first = curve()
    assert "after 128 of 256 pairs" in first.hindrance
    assert [point["pairs"] for point in first.points] == [128]
    second = curve()
    assert [point["pairs"] for point in second.points] == [128, 256]
    assert second.points[-1]["multiply_adds"] == pytest.approx(sum(second.plan.multiply_adds) / 2 * 256)
    assert {row["value"] for row in rows_of("nano", first)} == {None}
    third = curve()
    assert (third.points, third.seconds) == (second.points, second.seconds), "what has ended is not run again"


@given(st.lists(st.floats(1, 1e12), min_size=1, max_size=20), st.integers(1, 10**9), st.floats(0, 1))
def test_costs_of_a_run_add_up(costs: list[float], pairs: int, share: float) -> None:
    plan = Plan(pairs=pairs, pairs_per_second=1, weights=1, multiply_adds=tuple(costs))
    some = int(share * pairs)
    assert plan.spent(0) == 0
    assert plan.spent(some) <= plan.spent(pairs) * (1 + 1e-9)
    assert plan.spent(pairs) == pytest.approx(pairs * sum(costs) / len(costs))


def test_asking_costs_no_more_than_half_of_training() -> None:
    assert [evaluations(pairs, 8, 2000) for pairs in (256, 4000, 10_000, 10**6)] == [1, 2, 5, 8]


def test_recipes_that_nobody_ran_are_named(tmp_path: Path) -> None:
    curve = [{"pairs": 128, "multiply_adds": 1e9, **dict.fromkeys(METRICS, 0.5)}]
    rows = in_order([result("x", 0.5, "share", "higher", None, recipe="nano", curve=curve, weights=9, seconds=1.0)])
    assert {row["recipe"] for row in rows} == set(RECIPES)
    assert {row["note"] for row in rows if row["recipe"] == "large"} == {"not run yet"}
    write_page(tmp_path / "curve.json", rows, METRICS)
    assert "not run yet" in (tmp_path / "curve.html").read_text()
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_a_recipe_that_fails_leaves_the_others_their_rows(capsys: pytest.CaptureFixture[str]) -> None:
    rows = curve_bench.measured("nano", None, 1.0, 1)  # type: ignore[arg-type]
    assert [row["value"] for row in rows] == [None] * len(ASKED)
    assert "AttributeError" in rows[0]["note"]
    assert "Traceback" in capsys.readouterr().err
