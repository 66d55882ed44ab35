"""Drive a run on Ray Train: workers, checkpoints and failures; the recipe itself knows nothing of Ray."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec

from belvedere_platform.artifacts import ArtifactStore, Descriptor
from belvedere_platform.errors import BelvedereError, InvalidInput
from belvedere_training.config import RunConfig

ERROR_FILE = "belvedere-error.json"
_COORDINATOR_START_SECONDS = 180.0
_STARTS = 4
_TIMED_OUT = "timed out during startup"


def checkpoint_root() -> str:
    """Return where checkpoints go: $BELVEDERE_CHECKPOINTS, or a folder in the state directory."""
    home = Path(os.environ.get("BELVEDERE_HOME") or Path.home() / ".belvedere").absolute()
    return os.environ.get("BELVEDERE_CHECKPOINTS") or str(home / "checkpoints")


def elastic_workers(config: RunConfig) -> int | tuple[int, int]:
    """Return the number of workers, or the least and the most; InvalidInput when some number would not share the batch."""
    least, most = config.workers.min, config.workers.max
    size = config.optimization.batch_size
    unfit = [count for count in range(least, most + 1) if size % count]
    if unfit:
        step = math.lcm(*range(least, most + 1))
        raise InvalidInput(
            f"optimization.batchSize is {size}, and {unfit[0]} of workers.min {least} to workers.max {most} workers cannot "
            f"share it evenly: use a multiple of {step}, or another range of workers"
        )
    return most if least == most else (least, most)


def train_on_ray(config: RunConfig, artifacts_url: str, num_workers: int | None = None) -> Descriptor:
    """Run the recipe on Ray Train and return the published model.

    Without a number of workers, Ray Train takes as many as there is room for between the configuration's bounds, and
    starts anew from the last checkpoint with fewer or more when that changes. The global batch stays the same.
    """
    workers = num_workers or elastic_workers(config)
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ.setdefault(
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "180"
    )  # importing torch on busy cores takes a while
    import ray

    if not ray.is_initialized():
        start_ray(lambda: ray.init(address=os.environ.get("RAY_ADDRESS"), log_to_driver=True))
    if isinstance(workers, tuple):
        _await_coordinator()
    store = ArtifactStore(artifacts_url)
    error_file = f"{checkpoint_root()}/{config.identity}/{ERROR_FILE}"
    _remove(error_file)
    try:
        _trainer(config, artifacts_url, workers, error_file).fit()
    finally:
        # One worker that ends with an error of ours leaves the others waiting, and Ray then tells of their time-out.
        _raise_recorded(error_file)
    return store.resolve(config.output_tag)


def _trainer(config: RunConfig, artifacts_url: str, workers: int | tuple[int, int], error_file: str) -> Any:
    """Return what runs the recipe in so many workers. To be made when Ray is there, and knows which of its trainers is meant."""
    from ray.train import CheckpointConfig, FailureConfig, ScalingConfig
    from ray.train import RunConfig as RayRunConfig
    from ray.train.torch import TorchTrainer

    storage, resources = checkpoint_root(), config.workers.resources
    return TorchTrainer(
        _worker,
        train_loop_config={
            "config": config.model_dump(mode="json", by_alias=True),
            "artifacts": artifacts_url,
            "error_file": error_file,
            "evidence": f"{storage}/{config.identity}",
        },
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=resources.gpu > 0,
            resources_per_worker={"CPU": resources.cpu, **({"GPU": resources.gpu} if resources.gpu else {})},
        ),
        run_config=RayRunConfig(
            name=config.identity,
            storage_path=storage,
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            failure_config=FailureConfig(max_failures=config.resume.max_failures),
        ),
    )


def start_ray(start: Callable[[], object]) -> None:
    """Join or start Ray, anew where its own node was not up in time.

    Ray gives a node that it starts thirty seconds, no more, which is too little on busy cores; the next one finds most of
    what it needs read from disk and compiled.
    """
    for left in reversed(range(_STARTS)):
        try:
            start()
        except Exception as error:  # Ray raises just that
            if not left or _TIMED_OUT not in str(error):
                raise
        else:
            return


def _await_coordinator() -> None:
    """Return when the actor that says how many workers there is room for answers.

    Ray Train's controller gives it five seconds each time it asks, and does nothing else meanwhile, not even look at its
    workers. On busy cores the actor needs longer than that to start, so it is started here first.
    """
    import ray
    from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
        get_or_create_autoscaling_coordinator,
    )

    coordinator = get_or_create_autoscaling_coordinator()
    ray.get(coordinator.get_reserved_resources.remote("belvedere"), timeout=_COORDINATOR_START_SECONDS)


def _worker(loop: dict[str, Any]) -> None:
    """Run the recipe in one Ray Train worker.

    A wrong input or a diverged loss would fail again on every restart, so it is recorded for the driver instead of raised.
    """
    from belvedere_training.recipe import train
    from belvedere_training.world import RayWorld

    config = RunConfig.model_validate(loop["config"])
    try:
        train(
            config, ArtifactStore(loop["artifacts"]), RayWorld(config.run.namespace, config.run.name, loop["evidence"])
        )
    except BelvedereError as error:
        with fsspec.open(loop["error_file"], "w") as file:
            json.dump({"message": str(error), "exit_code": error.exit_code}, file)


def _remove(url: str) -> None:
    filesystem, path = fsspec.core.url_to_fs(url)
    if filesystem.exists(path):
        filesystem.rm(path)


def _raise_recorded(url: str) -> None:
    """Raise what a worker recorded, as the class of errors with its exit code."""
    filesystem, path = fsspec.core.url_to_fs(url)
    if not filesystem.exists(path):
        return
    with filesystem.open(path) as file:
        recorded = json.load(file)
    classes: list[type[BelvedereError]] = [BelvedereError, *BelvedereError.__subclasses__()]
    kinds = {kind.exit_code: kind for kind in reversed(classes)}
    raise kinds.get(recorded["exit_code"], BelvedereError)(recorded["message"])
