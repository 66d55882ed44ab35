"""What cannot be had is told before the first step, with what to do."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from belvedere_platform.artifacts import ArtifactStore
from belvedere_platform.errors import InvalidInput
from belvedere_training.config import RunConfig, resolve
from belvedere_training.model.config import SIZES, ModelConfig, VitConfig
from belvedere_training.recipe import prepare
from belvedere_training.world import LocalWorld

Configure = Callable[..., RunConfig]
Configured = Callable[..., RunConfig]


def test_several_texts_a_picture_and_other_objectives_are_refused(
    configured: Configured, store: ArtifactStore, tiny: ModelConfig, run_config: Configure
) -> None:
    config = configured(run_config(textsPerPicture=2), objectives={"queueSize": 16})
    with pytest.raises(
        InvalidInput, match=r"optimization\.textsPerPicture is 2, and objectives has more than contrast"
    ):
        prepare(resolve(config, store), store, LocalWorld(cores=1))


def test_several_questions_a_picture_that_nothing_learns_from_are_refused(
    store: ArtifactStore, tiny: ModelConfig, run_config: Configure
) -> None:
    with pytest.raises(
        InvalidInput, match=r"optimization\.questionsPerPicture is 4, and neither objectives\.lm nor objectives\.mlm"
    ):
        prepare(resolve(run_config(questionsPerPicture=4), store), store, LocalWorld(cores=1))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"coarseShare": 0.5}, r"optimization\.coarseShare is 0\.5: half of the 64 pixels is no multiple of 64"),
        (
            {"resolution": "Progressive"},
            r"optimization\.resolution is Progressive, and half of the 64 pixels is no multiple",
        ),
        (
            {"resolution": "ByEntropy"},
            r"optimization\.resolution is ByEntropy, and half of the 64 pixels is no multiple",
        ),
    ],
)
def test_half_a_resolution_that_the_tower_cannot_take_is_refused(
    store: ArtifactStore,
    tiny: ModelConfig,
    run_config: Configure,
    monkeypatch: pytest.MonkeyPatch,
    asked: dict[str, object],
    message: str,
) -> None:
    tower = VitConfig(image_size=64, patch_size=64, hidden_size=16, num_layers=1, num_heads=2)
    monkeypatch.setitem(SIZES, "nano", tiny.model_copy(update={"vision": tower}))
    with pytest.raises(InvalidInput, match=message):
        prepare(resolve(run_config(**asked), store), store, LocalWorld(cores=1))


def test_the_batch_must_be_divisible_by_the_workers(store: ArtifactStore, run_config: Configure) -> None:
    world = LocalWorld(cores=1)
    world.size = 3
    with pytest.raises(InvalidInput, match="batchSize is 16; it must be a multiple of the 3 workers"):
        prepare(resolve(run_config(), store), store, world)


def test_an_objective_that_needs_fusion_is_refused_in_a_dual_model(
    store: ArtifactStore, tiny: ModelConfig, run_config: Configure
) -> None:
    document = run_config().model_dump(by_alias=True) | {"objectives": {"lm": 1}}
    with pytest.raises(InvalidInput, match=r"objectives\.lm is 1 and architecture\.topology is dual"):
        prepare(resolve(RunConfig.model_validate(document), store), store, LocalWorld(cores=1))


@pytest.mark.parametrize(
    ("optimization", "parts", "message"),
    [
        ({}, {"objectives": {"disentangle": 0.1, "attributes": ["group", "colour"]}},
         r"objectives\.disentangle is 0\.1, and none of objectives\.attributes, group, colour, .* the records have family, group, "),
        ({"resolution": "ByEntropy"}, {}, r"resolution is ByEntropy, and architecture\.tower is conv.*use vit"),
        ({"resolution": "ByEntropy"}, {"architecture": {"tower": "vit", "topology": "fusion", "attend": "pooled"}},
         r"resolution is ByEntropy, and architecture\.attend is pooled.*use full"),
        ({"resolution": "ByEntropy", "coarseShare": 0.5}, {"architecture": {"tower": "vit"}},
         r"resolution is ByEntropy, and optimization\.coarseShare is 0\.5: leave it out"),
        ({"resolution": "Progressive"}, {}, r"resolution is Progressive, and architecture\.tower is conv.*use vit"),
        ({"resolution": "Progressive", "coarseShare": 0.6}, {"architecture": {"tower": "vit"}},
         r"resolution is Progressive, and optimization\.coarseShare is 0\.6: use 0\.5 or less"),
        ({"resolution": "Progressive"}, {"architecture": {"tower": "resnet"}}, r"architecture\.tower is resnet"),
        ({"resolution": "Progressive", "unfreezeEveryPairs": 16}, {"architecture": {"tower": "vit"}},
         r"resolution is Progressive, and optimization\.unfreezeEveryPairs is 16.*set it to 0"),
    ],
)  # fmt: skip
def test_what_cannot_be_learned_from_this_data_by_this_model_is_told(
    configured: Configured,
    store: ArtifactStore,
    tiny: ModelConfig,
    run_config: Configure,
    optimization: dict[str, object],
    parts: dict[str, dict[str, object]],
    message: str,
) -> None:
    config = configured(run_config(**optimization), **parts)
    with pytest.raises(InvalidInput, match=message):
        prepare(resolve(config, store), store, LocalWorld(cores=1))
