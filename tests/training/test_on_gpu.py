"""The recipe on a GPU: the losses of a processor, runs that resume exactly, NCCL alone and through Ray Train. Skips without one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as distributed

from belvedere_platform.artifacts import ArtifactStore
from belvedere_platform.ports import free_port
from belvedere_training.config import RunConfig, resolve
from belvedere_training.driver import train_on_ray
from belvedere_training.loop import Loop
from belvedere_training.recipe import prepare, train
from belvedere_training.sharding import in_shares
from belvedere_training.world import LocalWorld

pytestmark = [pytest.mark.gpu, pytest.mark.slow]

Configure = Callable[..., RunConfig]
Resumed = Callable[[RunConfig, ArtifactStore, Path], tuple[Loop, Loop]]
POSITIONS = (0, 16, 32)
EVERY_OBJECTIVE = {"itm": 1, "lm": 1, "mlm": 0.5, "mim": 0.5, "groupsPerStep": 2, "distillation": 0.4, "queueSize": 24}
RUNS: dict[str, dict[str, dict[str, Any]]] = {
    "contrast": {},
    "resnet": {"architecture": {"tower": "resnet"}},
    "several texts": {"optimization": {"textsPerPicture": 2}},
    "coarse": {"optimization": {"coarseShare": 0.5}},
    "every objective": {
        "architecture": {"topology": "fusion", "tower": "vit"},
        "objectives": EVERY_OBJECTIVE,
        "optimization": {"chunkSize": 8, "clip": "perTower", "recompute": True},
    },
    "unified": {"architecture": {"topology": "unified"}, "objectives": {"itm": 1, "lm": 1}},
    "progressive": {"architecture": {"tower": "vit"}, "optimization": {"resolution": "Progressive"}},
    "routed": {"architecture": {"tower": "vit"}, "optimization": {"resolution": "ByEntropy"}},
    "disentangled": {"objectives": {"disentangle": 1, "attributes": ["style", "subgroup"]}},
}


class OnProcessor(LocalWorld):
    """One process that leaves the GPU alone."""

    def __init__(self) -> None:
        super().__init__(cores=1)
        self.device = torch.device("cpu")


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch, tiny_vit: None) -> None:
    """Compute float32 in float32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture
def nccl() -> Iterator[None]:
    """Join a group of one process."""
    torch.cuda.set_device(0)
    distributed.init_process_group("nccl", init_method=f"tcp://127.0.0.1:{free_port()}", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def losses(config: RunConfig, store: ArtifactStore, world: LocalWorld) -> list[float]:
    stepper = prepare(config, store, world).stepper
    return [stepper.step(position) for position in POSITIONS]


@pytest.mark.parametrize("name", RUNS)
def test_losses_are_those_of_a_processor(
    name: str, store: ArtifactStore, run_config: Configure, configured: Configure
) -> None:
    config = resolve(configured(run_config(), **RUNS[name]), store)
    expected, found = losses(config, store, OnProcessor()), losses(config, store, LocalWorld(cores=1))
    assert found[0] == pytest.approx(expected[0], rel=1e-4)
    # Both optimizers divide a gradient by its size: they make much of its last digits.
    assert found == pytest.approx(expected, rel=2e-2)


@pytest.mark.parametrize("precision", ["bf16", "fp16", "auto"])
def test_a_shorter_format_makes_about_the_same_losses(
    precision: str, store: ArtifactStore, run_config: Configure
) -> None:
    expected = losses(resolve(run_config(), store), store, OnProcessor())
    found = losses(resolve(run_config(precision=precision), store), store, LocalWorld(cores=1))
    assert found[0] == pytest.approx(expected[0], rel=2e-2)


@pytest.mark.filterwarnings("ignore:grid_sampler_2d_backward_cuda:UserWarning")  # the view's picture learns nothing
@pytest.mark.parametrize("name", ["contrast", "every objective", "progressive"])
def test_a_resumed_run_equals_the_unbroken_one_bit_for_bit(
    name: str, store: ArtifactStore, run_config: Configure, configured: Configure, resumed: Resumed, tmp_path: Path
) -> None:
    resumed(resolve(configured(run_config(), **RUNS[name]), store), store, tmp_path / "state")


def test_it_learns_is_evaluated_on_its_way_and_publishes(
    store: ArtifactStore, run_config: Configure, configured: Configure
) -> None:
    changes = {"evaluation": {"everyPairs": 800}, "optimization": {"learningRate": 0.003, "pairs": 1600}}
    assert train(configured(run_config(), **changes), store, LocalWorld(cores=1)) is not None
    assert store.config("runs/default/trial/1")["metrics"]["heldout_style_en_r5"] > 0.25, "of 40 pictures"


@pytest.mark.usefixtures("nccl")
def test_shares_over_nccl_make_the_losses_of_whole_weights(
    store: ArtifactStore, run_config: Configure, configured: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"architecture": {"topology": "fusion", "tower": "vit"}, "objectives": {"itm": 1, "lm": 1}}
    config = resolve(configured(run_config(), **changes), store)
    whole = losses(config, store, LocalWorld(cores=1))
    monkeypatch.setattr("belvedere_training.recipe.wants_shares", lambda *_: True)
    stepper = prepare(config, store, LocalWorld(cores=1)).stepper
    assert any(in_shares(weight) for weight in stepper.model.parameters())
    assert [stepper.step(position) for position in POSITIONS] == pytest.approx(whole, rel=1e-4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray's own
def test_ray_train_gives_a_worker_the_gpu(
    store: ArtifactStore,
    run_config: Configure,
    configured: Configure,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("BELVEDERE_CHECKPOINTS", str(tmp_path / "checkpoints"))
    monkeypatch.setenv("NCCL_DEBUG", "VERSION")
    changes = {"workers": {"resources": {"cpu": 1, "gpu": 1}}, "optimization": {"pairs": 320}}
    config = resolve(configured(run_config(), **changes), store)
    ray.init(num_cpus=2, num_gpus=1, include_dashboard=False)
    try:
        assert train_on_ray(config, store.url, 1).digest == store.resolve(config.output_tag).digest
    finally:
        ray.shutdown()
    assert '"device": "cuda' in capfd.readouterr().out
