"""What training tests share: a store with the drawn shapes, and a tiny model of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from belvedere_platform.artifacts import ArtifactStore
from belvedere_training.config import RunConfig
from belvedere_training.data.corpus import Corpus, load_split
from belvedere_training.data.manifest import push
from belvedere_training.data.shapes import build_shapes
from belvedere_training.loop import Loop
from belvedere_training.model.config import SIZES, TOWERS, ConvConfig, ModelConfig, TextConfig, VitConfig
from belvedere_training.recipe import prepare
from belvedere_training.world import LocalWorld

TINY = ModelConfig(
    embed_dim=16,
    vision=ConvConfig(stem_width=8, widths=(8, 16), blocks=(1, 1), pooled_width=16),
    text=TextConfig(vocab_size=400, hidden_size=16, num_layers=1, num_heads=2, max_length=12),
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Keep tests from spreading over cores, and from sharing a random state."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give every test a cache of its own."""
    monkeypatch.setenv("BELVEDERE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def shapes_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the shapes data set."""
    return build_shapes(tmp_path_factory.mktemp("shapes") / "shapes")


@pytest.fixture(scope="session")
def shapes(shapes_folder: Path) -> Corpus:
    """Return the training split of the shapes."""
    return load_split(shapes_folder, "train")


@pytest.fixture
def store(tmp_path: Path, shapes_folder: Path) -> ArtifactStore:
    """Return an artifact store that has the shapes as datasets/shapes."""
    store = ArtifactStore((tmp_path / "artifacts").as_uri())
    push(shapes_folder, store, "datasets/shapes")
    return store


@pytest.fixture(scope="session")
def tiny_config() -> ModelConfig:
    """Return a model of a few thousand weights."""
    return TINY


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> ModelConfig:
    """Make `nano` a model of a few thousand weights."""
    monkeypatch.setitem(SIZES, "nano", TINY)
    return TINY


@pytest.fixture
def tiny_vit(monkeypatch: pytest.MonkeyPatch, tiny: ModelConfig) -> None:
    """Let `nano` have a vision transformer of a few thousand weights too."""
    tower = VitConfig(image_size=64, patch_size=16, hidden_size=16, num_layers=1, num_heads=2)
    monkeypatch.setitem(TOWERS["nano"], "vit", tower)


def resumed(config: RunConfig, store: ArtifactStore, folder: Path) -> tuple[Loop, Loop]:
    """Return a run that was never broken off, and one that was and went on from its checkpoint in the folder; both have ended, with the
    same weights bit for bit."""
    unbroken = prepare(config, store, LocalWorld(cores=1))
    unbroken.run()
    first = prepare(config, store, LocalWorld(folder, cores=1))
    first.run(until=48)  # the checkpoint is at 32: what came after it is lost
    second = prepare(config, store, LocalWorld(folder, cores=1))
    assert second.progress.pairs == 32
    second.run()
    for name, tensor in unbroken.stepper.model.state_dict().items():
        assert torch.equal(tensor, second.stepper.model.state_dict()[name]), name
    return unbroken, second


@pytest.fixture(scope="session", name="resumed")
def resumed_fixture() -> object:
    """Return the function that breaks a run off and compares it, bit for bit, with one that went on."""
    return resumed


def run_config(**changes: object) -> RunConfig:
    """Return a valid configuration of a short run over the shapes; `changes` are merged into the optimization."""
    optimization = {"pairs": 64, "batchSize": 16, "warmupPairs": 16, "precision": "fp32", **changes}
    return RunConfig.model_validate(
        {
            "model": "shapes",
            "data": {"dataset": "shapes"},
            "optimization": optimization,
            "run": {"name": "trial"},
            "resume": {"checkpointEveryPairs": 32},
        }
    )


@pytest.fixture(scope="session", name="run_config")
def run_config_fixture() -> object:
    """Return the function that makes a configuration."""
    return run_config


def configured(config: RunConfig, **parts: dict[str, object]) -> RunConfig:
    """Return the configuration with these fields of its parts changed."""
    document = config.model_dump(by_alias=True)
    return RunConfig.model_validate(
        {**document, **{name: {**(document[name] or {}), **part} for name, part in parts.items()}}
    )


@pytest.fixture(scope="session", name="configured")
def configured_fixture() -> object:
    """Return the function that changes fields of a configuration's parts."""
    return configured
