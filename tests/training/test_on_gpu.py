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
from belvedere_training.gradcache import Embedded, cached_backward, chunks
from belvedere_training.model.config import TOWERS, ModelConfig, TextConfig, VitConfig
from belvedere_training.model.vision_language import VisionLanguageModel
from belvedere_training.objectives.contrastive import contrastive_loss
from belvedere_training.recipe import prepare, train
from belvedere_training.sharding import in_shares
from belvedere_training.world import LocalWorld

pytestmark = [pytest.mark.gpu, pytest.mark.slow]

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
def exact(monkeypatch: pytest.MonkeyPatch, tiny: ModelConfig) -> None:
    """Compute float32 in float32, and let `nano` have a transformer of a few thousand weights too."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    tower = VitConfig(image_size=64, patch_size=16, hidden_size=16, num_layers=1, num_heads=2)
    monkeypatch.setitem(TOWERS["nano"], "vit", tower)


@pytest.fixture
def nccl() -> Iterator[None]:
    """Join a group of one process."""
    torch.cuda.set_device(0)
    distributed.init_process_group("nccl", init_method=f"tcp://127.0.0.1:{free_port()}", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def config_of(base: RunConfig, changes: dict[str, dict[str, Any]], store: ArtifactStore) -> RunConfig:
    document = base.model_dump(by_alias=True)
    merged = {name: {**(document[name] or {}), **part} for name, part in changes.items()}
    return resolve(RunConfig.model_validate({**document, **merged}), store)


def losses(config: RunConfig, store: ArtifactStore, world: LocalWorld) -> list[float]:
    stepper = prepare(config, store, world).stepper
    return [stepper.step(position) for position in POSITIONS]


@pytest.mark.parametrize("name", RUNS)
def test_losses_are_those_of_a_processor(name: str, store: ArtifactStore, run_config: Callable[..., RunConfig]) -> None:
    config = config_of(run_config(), RUNS[name], store)
    expected, found = losses(config, store, OnProcessor()), losses(config, store, LocalWorld(cores=1))
    assert found[0] == pytest.approx(expected[0], rel=1e-4)
    # Both optimizers divide a gradient by its size: they make much of its last digits.
    assert found == pytest.approx(expected, rel=2e-2)


@pytest.mark.parametrize("precision", ["bf16", "fp16", "auto"])
def test_a_shorter_format_makes_about_the_same_losses(
    precision: str, store: ArtifactStore, run_config: Callable[..., RunConfig]
) -> None:
    expected = losses(resolve(run_config(), store), store, OnProcessor())
    found = losses(resolve(run_config(precision=precision), store), store, LocalWorld(cores=1))
    assert found[0] == pytest.approx(expected[0], rel=2e-2)


@pytest.mark.filterwarnings("ignore:grid_sampler_2d_backward_cuda:UserWarning")  # the view's picture learns nothing
@pytest.mark.parametrize("name", ["contrast", "every objective", "progressive"])
def test_a_resumed_run_equals_the_unbroken_one_bit_for_bit(
    name: str, store: ArtifactStore, run_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    config = config_of(run_config(), RUNS[name], store)
    unbroken = prepare(config, store, LocalWorld(cores=1))
    unbroken.run()
    prepare(config, store, LocalWorld(tmp_path / "state", cores=1)).run(until=48)
    second = prepare(config, store, LocalWorld(tmp_path / "state", cores=1))
    assert second.progress.pairs == 32
    second.run()
    for key, tensor in unbroken.stepper.model.state_dict().items():
        assert torch.equal(tensor, second.stepper.model.state_dict()[key]), key


def test_it_learns_is_evaluated_on_its_way_and_publishes(
    store: ArtifactStore, run_config: Callable[..., RunConfig]
) -> None:
    changes = {"evaluation": {"everyPairs": 800}, "optimization": {"learningRate": 0.003, "pairs": 1600}}
    loop_config = config_of(run_config(), changes, store)
    assert train(loop_config, store, LocalWorld(cores=1)) is not None
    assert store.config("runs/default/trial/1")["metrics"]["heldout_style_en_r5"] > 0.25, "of 40 pictures"


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_gradcache_gives_the_gradient_of_the_whole_batch(dropout: float) -> None:
    tower = VitConfig(image_size=32, patch_size=8, hidden_size=16, num_layers=1, num_heads=2)
    text = TextConfig(vocab_size=300, hidden_size=16, num_layers=2, num_heads=2, max_length=8, dropout=dropout)
    model = VisionLanguageModel(ModelConfig(embed_dim=16, vision=tower, text=text)).cuda().train()
    pixels, tokens = torch.randn(12, 3, 32, 32, device="cuda"), torch.randint(1, 300, (12, 6), device="cuda")
    rows = chunks(12, 5)

    def whole() -> None:
        parts = [model(pixels[part], tokens[part]) for part in rows]
        image, text = (torch.cat([part[number] for part in parts]) for number in (0, 1))
        contrastive_loss(image, text, parts[0][2]).backward()  # type: ignore[no-untyped-call]

    def cached() -> None:
        cached_backward(lambda part, last: Embedded(*model(pixels[part], tokens[part])), contrastive_loss, rows, model)

    def gradient_of(backward: Callable[[], None]) -> torch.Tensor:
        torch.manual_seed(7)  # of the GPU too: each chunk draws its dropout there
        model.zero_grad(set_to_none=True)
        backward()
        return torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None])

    expected, found = gradient_of(whole), gradient_of(cached)
    assert float((found - expected).norm() / expected.norm()) < 1e-5


@pytest.mark.usefixtures("nccl")
def test_shares_over_nccl_make_the_losses_of_whole_weights(
    store: ArtifactStore, run_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"architecture": {"topology": "fusion", "tower": "vit"}, "objectives": {"itm": 1, "lm": 1}}
    config = config_of(run_config(), changes, store)
    whole = losses(config, store, LocalWorld(cores=1))
    monkeypatch.setattr("belvedere_training.recipe.wants_shares", lambda *_: True)
    stepper = prepare(config, store, LocalWorld(cores=1)).stepper
    assert any(in_shares(weight) for weight in stepper.model.parameters())
    assert [stepper.step(position) for position in POSITIONS] == pytest.approx(whole, rel=1e-4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray's own
def test_ray_train_gives_a_worker_the_gpu(
    store: ArtifactStore,
    run_config: Callable[..., RunConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("BELVEDERE_CHECKPOINTS", str(tmp_path / "checkpoints"))
    monkeypatch.setenv("NCCL_DEBUG", "VERSION")
    changes = {"workers": {"resources": {"cpu": 1, "gpu": 1}}, "optimization": {"pairs": 320}}
    config = config_of(run_config(), changes, store)
    ray.init(num_cpus=2, num_gpus=1, include_dashboard=False)
    try:
        assert train_on_ray(config, store.url, 1).digest == store.resolve(config.output_tag).digest
    finally:
        ray.shutdown()
    assert '"device": "cuda' in capfd.readouterr().out
