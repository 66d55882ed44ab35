"""Weights in shares: the losses of whole ones, half the bytes on each of two workers, checkpoints for any number of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as distributed
from torch.multiprocessing.spawn import spawn

from belvedere_platform.artifacts import ArtifactStore
from belvedere_platform.errors import InvalidInput
from belvedere_platform.ports import free_port
from belvedere_training import update
from belvedere_training.checkpoint import part_name, part_of, read_state, write_part
from belvedere_training.config import RunConfig, resolve
from belvedere_training.data.manifest import push
from belvedere_training.loop import Loop
from belvedere_training.model.config import SIZES, TOWERS, ModelConfig, TextConfig, VitConfig, sized
from belvedere_training.model.vision_language import VisionLanguageModel
from belvedere_training.recipe import prepare
from belvedere_training.sharding import SHARDED_FROM, own, wants_shares
from belvedere_training.world import LocalWorld

POSITIONS = (0, 16, 32)
KEPT = 16
TOWER = VitConfig(image_size=64, patch_size=16, hidden_size=16, num_layers=1, num_heads=2)
TEXT = TextConfig(vocab_size=400, hidden_size=16, num_layers=1, num_heads=2, max_length=12)


def make_small(put: Callable[[Any, Any, Any], None], tiny: ModelConfig) -> None:
    """Let `nano` have transformers of a few thousand weights, and `small` the same with dropout."""
    put(SIZES, "nano", tiny.model_copy(update={"text": TEXT}))
    put(SIZES, "small", tiny.model_copy(update={"text": TEXT.model_copy(update={"dropout": 0.1})}))
    for size in ("nano", "small"):
        put(TOWERS[size], "vit", TOWER)


def contrast(base: RunConfig, sharding: str, **optimization: object) -> dict[str, Any]:
    """Return a run that learns from contrast alone."""
    document = base.model_dump(by_alias=True)
    document["workers"]["sharding"] = sharding
    document["architecture"] = {"topology": "fusion", "tower": "vit"}
    document["optimization"] |= optimization
    return document


def everything(base: RunConfig, sharding: str) -> dict[str, Any]:
    """Return a run with every objective, a teacher, chunks, recomputation, dropout and limits by modality."""
    document = contrast(base, sharding, chunkSize=4, clip="perTower", recompute=True)
    weights = {"itm": 1, "lm": 1, "mlm": 0.5, "mim": 0.5, "groupsPerStep": 2, "distillation": 0.4, "queueSize": 24}
    return {**document, "size": "small", "objectives": weights}


class TwoWorkers(LocalWorld):
    """One of two processes joined by gloo; their parts of a checkpoint go to one folder."""

    def __init__(self, rank: int, folder: Path, state: dict[str, Any] | None = None) -> None:
        super().__init__(folder, cores=2)
        self.rank, self.size, self.state = rank, 2, state

    def last_checkpoint(self) -> dict[str, Any] | None:
        return self.state

    def keep(self, state: Mapping[str, Any], metrics: Mapping[str, Any]) -> None:
        assert self.folder is not None
        self.folder.mkdir(exist_ok=True)
        write_part(part_of(state, self.rank, self.size), self.folder / part_name(self.rank, self.size))


class After(LocalWorld):
    """One worker that begins with what others left."""

    def __init__(self, state: dict[str, Any]) -> None:
        super().__init__(cores=1)
        self.state = state

    def last_checkpoint(self) -> dict[str, Any]:
        return self.state


def held_bytes(loop: Loop) -> int:
    """Return the bytes of weights, optimizer states and teacher in this process, however little of them is looked at."""
    tensors: list[torch.Tensor] = [*loop.stepper.model.parameters()]
    for part in loop.stepper.update.optimizer.parts:
        tensors += [value for state in part.state.values() for value in state.values() if torch.is_tensor(value)]
    if loop.stepper.teacher is not None:
        tensors += loop.stepper.teacher.model.parameters()
    storages = {held.data_ptr(): held for tensor in tensors if len(held := own(tensor.detach()).untyped_storage())}
    return sum(held.nbytes() for held in storages.values())


def train_steps(config: RunConfig, store: ArtifactStore, world: TwoWorkers) -> tuple[Loop, list[float]]:
    loop = prepare(config, store, world)
    losses = []
    for position in POSITIONS[POSITIONS.index(loop.progress.pairs) :]:
        if position == KEPT and world.state is None:
            world.keep(loop.state(), {})
        losses.append(loop.stepper.step(position))
        loop.progress.pairs += 16
    return loop, losses


def worker(rank: int, port: int, folder: Path, artifacts: str, tiny: ModelConfig, runs: dict[str, RunConfig]) -> None:
    torch.set_num_threads(1)
    update.INITIAL_SCALE = 2.0**8  # else the few steps of the test would all overflow
    make_small(lambda table, name, value: table.__setitem__(name, value), tiny)
    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    store, found = ArtifactStore(artifacts), {}
    for name, config in runs.items():
        loop, losses = train_steps(config, store, TwoWorkers(rank, folder / name))
        model = loop.stepper.whole_model()
        found[name] = {
            "losses": losses,
            "bytes": held_bytes(loop),
            "skipped": loop.stepper.update.skipped,
            "model": model and model.state_dict(),
        }
    distributed.barrier()
    for name in ("everything, FSDP", "convolutions, DDP"):
        loop, losses = train_steps(runs[name], store, TwoWorkers(rank, folder, read_state(folder / name)))
        found[name]["resumed"], found[name]["statistics"] = losses, dict(loop.stepper.model.named_buffers())
    torch.save(found, folder / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory, shapes_folder: Path) -> ArtifactStore:
    store = ArtifactStore((tmp_path_factory.mktemp("sharding") / "artifacts").as_uri())
    push(shapes_folder, store, "datasets/shapes")
    return store


@pytest.fixture(scope="module")
def runs(run_config: Callable[..., RunConfig], artifacts: ArtifactStore) -> dict[str, RunConfig]:
    documents = {
        f"{name}, {sharding}": document
        for sharding in ("DDP", "FSDP")
        for name, document in (
            ("everything", everything(run_config(), sharding)),
            *((precision, contrast(run_config(), sharding, precision=precision)) for precision in ("fp32", "bf16", "fp16")),
        )
    }  # fmt: skip
    documents["convolutions, DDP"] = {**contrast(run_config(), "DDP"), "architecture": {}}
    return {name: resolve(RunConfig.model_validate(document), artifacts) for name, document in documents.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("two-workers")


@pytest.fixture(scope="module")
def found(
    runs: dict[str, RunConfig], artifacts: ArtifactStore, tiny_config: ModelConfig, folder: Path
) -> list[dict[str, Any]]:
    """Return what each of two workers found in each run."""
    port = free_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BELVEDERE_CACHE", str(folder / "cache"))
        spawn(worker, args=(port, folder, artifacts.url, tiny_config, runs), nprocs=2)  # type: ignore[no-untyped-call]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


# In float32 only the order of sums differs: of two gradients, and of the parts of a norm. bfloat16 keeps 8 bits and float16 11;
# in shares the tokens between layers have them too. After the first update both optimizers, which divide a gradient by its
# size, have made much of its last digits.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "first", "later"),
    [("everything", 1e-5, 1e-5), ("fp32", 1e-5, 1e-5), ("bf16", 2**-7, 2**-4), ("fp16", 2**-9, 2**-4)],
)
def test_losses_in_shares_are_those_of_whole_weights(
    found: list[dict[str, Any]], name: str, first: float, later: float
) -> None:
    for of in found:
        shares, whole = of[f"{name}, FSDP"]["losses"], of[f"{name}, DDP"]["losses"]
        assert shares[0] == pytest.approx(whole[0], rel=first)
        assert shares == pytest.approx(whole, rel=later)
        assert of[f"{name}, FSDP"]["skipped"] == of[f"{name}, DDP"]["skipped"] == 0
        assert len(set(shares)) == len(POSITIONS)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["everything", "bf16"])
def test_each_worker_holds_half_of_the_bytes(found: list[dict[str, Any]], name: str) -> None:
    held = [of[f"{name}, FSDP"]["bytes"] for of in found]
    for of, half in zip(found, held, strict=True):
        assert half < 0.51 * of[f"{name}, DDP"]["bytes"]
    assert sum(held) >= found[0][f"{name}, DDP"]["bytes"], (
        "weights, gradients' momenta and squares are float32 in any case"
    )


@pytest.mark.slow
def test_the_whole_model_is_on_rank_0_alone(found: list[dict[str, Any]]) -> None:
    first, second = (of["everything, FSDP"]["model"] for of in found)
    assert second is None
    whole = found[0]["everything, DDP"]["model"]
    assert first.keys() == whole.keys()
    for name, tensor in whole.items():
        torch.testing.assert_close(first[name], tensor, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_a_run_in_shares_resumes_bit_for_bit(found: list[dict[str, Any]]) -> None:
    for of in found:
        assert of["everything, FSDP"]["resumed"] == of["everything, FSDP"]["losses"][POSITIONS.index(KEPT) :]


@pytest.mark.slow
def test_running_statistics_of_a_resumed_run_are_those_of_rank_0(found: list[dict[str, Any]]) -> None:
    first, second = (of["convolutions, DDP"] for of in found)
    assert first["resumed"] == first["losses"][POSITIONS.index(KEPT) :]
    assert len(first["statistics"]) > 0
    for name, statistic in first["statistics"].items():
        assert torch.equal(statistic, first["model"][name]), name
    assert any(not torch.equal(second["statistics"][name], first["model"][name]) for name in first["statistics"])


@pytest.mark.slow
def test_a_checkpoint_of_two_workers_goes_on_with_one_that_holds_everything(
    found: list[dict[str, Any]],
    runs: dict[str, RunConfig],
    artifacts: ArtifactStore,
    folder: Path,
    tiny_config: ModelConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_small(monkeypatch.setitem, tiny_config)
    loop = prepare(runs["fp32, FSDP"], artifacts, After(read_state(folder / "fp32, FSDP")))
    assert loop.progress.pairs == KEPT
    alone = [loop.stepper.step(position) for position in POSITIONS[POSITIONS.index(KEPT) :]]
    of_two = zip(*(of["fp32, FSDP"]["losses"][POSITIONS.index(KEPT) :] for of in found), strict=True)
    assert alone == pytest.approx([sum(losses) / 2 for losses in of_two], rel=1e-5)


def test_shares_are_for_large_models_of_several_workers(
    run_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.device("meta"):
        small, large = (VisionLanguageModel(sized(size, tower="vit")) for size in ("base", "large"))
    monkeypatch.setattr("belvedere_training.sharding.SHARDED_FROM", 500_000_000)
    decided = {
        (sharding, size): wants_shares(RunConfig.model_validate(contrast(run_config(), sharding)), model, num_workers=2)
        for sharding in ("Auto", "DDP", "FSDP")
        for size, model in (("small", small), ("large", large))
    }
    assert {key for key, shares in decided.items() if shares} == {
        ("Auto", "large"),
        ("FSDP", "small"),
        ("FSDP", "large"),
    }
    assert not wants_shares(RunConfig.model_validate(contrast(run_config(), "FSDP")), large, num_workers=1)
    assert SHARDED_FROM == 1_000_000_000


@pytest.mark.parametrize(
    ("tower", "optimization", "message"),
    [
        ("conv", {}, r"workers\.sharding is FSDP, and the vision tower has batch norm.*set architecture\.tower to vit"),
        ("vit", {"unfreezeEveryPairs": 8}, r"workers\.sharding is FSDP, and optimization\.unfreezeEveryPairs is 8"),
        ("vit", {"resolution": "ByEntropy"}, r"workers\.sharding is FSDP, and optimization\.resolution is ByEntropy"),
    ],
)
def test_what_does_not_go_with_shares_is_told(
    run_config: Callable[..., RunConfig], tower: str, optimization: dict[str, object], message: str
) -> None:
    with torch.device("meta"):
        model = VisionLanguageModel(sized("nano", tower=tower))  # type: ignore[arg-type]
    config = RunConfig.model_validate(contrast(run_config(), "FSDP", **optimization))
    with pytest.raises(InvalidInput, match=message):
        wants_shares(config, model, num_workers=2)
