"""Where a run takes place: which worker this is, and how it reports and keeps checkpoints. One process, or Ray Train."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as distributed

CHECKPOINT_FILE = "state.pt"


class World(Protocol):
    """What a worker knows of the others and of the outside."""

    rank: int
    size: int
    cores: int
    device: torch.device

    def last_checkpoint(self) -> dict[str, Any] | None:
        """Return the newest saved state, if there is one."""
        ...

    def keep(self, state: Mapping[str, Any] | None, metrics: Mapping[str, Any]) -> None:
        """Save the state (given on rank 0, None elsewhere). Every rank must call it."""
        ...

    def say(self, metrics: Mapping[str, Any]) -> None:
        """Publish live metrics; called on rank 0."""
        ...


def say_line(metrics: Mapping[str, Any]) -> None:
    """Write one JSON line. Not with print, which Ray Train replaces by one that writes every line twice."""
    sys.stdout.write(json.dumps(metrics) + "\n")
    sys.stdout.flush()


def read_state(folder: Path) -> dict[str, Any]:
    """Return a saved state; only tensors and plain values are read, never code."""
    state: dict[str, Any] = torch.load(folder / CHECKPOINT_FILE, map_location="cpu", weights_only=True)
    return state


class LocalWorld:
    """One process. Checkpoints go to a folder, or nowhere."""

    def __init__(self, folder: Path | None = None, *, cores: int | None = None) -> None:
        self.rank, self.size = 0, 1
        self.cores = cores or os.cpu_count() or 1
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.folder = folder

    def last_checkpoint(self) -> dict[str, Any] | None:
        """Return the state in the folder, if there is one."""
        if self.folder is None or not (self.folder / CHECKPOINT_FILE).is_file():
            return None
        return read_state(self.folder)

    def keep(self, state: Mapping[str, Any] | None, metrics: Mapping[str, Any]) -> None:
        """Write the state beside the last one and move it into its place."""
        if self.folder is not None and state is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            partial = self.folder / f"{CHECKPOINT_FILE}.partial"
            torch.save(dict(state), partial)
            partial.replace(self.folder / CHECKPOINT_FILE)

    def forget(self) -> None:
        """Remove the checkpoint of a finished run."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def say(self, metrics: Mapping[str, Any]) -> None:
        """Print the metrics as one JSON line."""
        say_line(metrics)


class RayWorld:
    """One worker of a Ray Train run; live metrics go to Ray's Prometheus exporter as well."""

    def __init__(self, namespace: str, run: str) -> None:
        import ray
        import ray.train
        import ray.train.torch

        context = ray.train.get_context()
        self.rank, self.size = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()
        self.cores = max(1, (os.cpu_count() or 1) // context.get_local_world_size()) * self.size
        self._gauges = _gauges() if self.rank == 0 else {}
        self._labels = {"namespace": namespace, "run": run}

    def last_checkpoint(self) -> dict[str, Any] | None:
        """Return the state that Ray Train kept last, of this attempt or an earlier one."""
        import ray.train

        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return None
        with checkpoint.as_directory() as folder:
            return read_state(Path(folder))

    def keep(self, state: Mapping[str, Any] | None, metrics: Mapping[str, Any]) -> None:
        """Hand the state to Ray Train, which uploads it."""
        import ray.train

        if state is None:
            ray.train.report(dict(metrics))
            return
        with tempfile.TemporaryDirectory(prefix="belvedere-checkpoint-") as folder:
            torch.save(dict(state), Path(folder) / CHECKPOINT_FILE)
            ray.train.report(dict(metrics), checkpoint=ray.train.Checkpoint.from_directory(folder))

    def say(self, metrics: Mapping[str, Any]) -> None:
        """Set the gauges and print the metrics as one JSON line."""
        for name in ("loss", "images_per_second", "pairs"):
            if name in metrics:
                self._gauges[name].set(float(metrics[name]), self._labels)
        for name, value in metrics.get("recall", {}).items():
            self._gauges["recall"].set(float(value), {**self._labels, "metric": name})
        say_line(metrics)


def _gauges() -> dict[str, Any]:
    from ray.util.metrics import Gauge

    labels = ("namespace", "run")
    described = {
        "loss": ("mean training loss since the last report", labels),
        "images_per_second": ("pictures a second over all workers", labels),
        "pairs": ("image-text pairs seen", labels),
        "recall": ("last evaluation on held-out data", (*labels, "metric")),
    }
    return {
        name: Gauge(f"belvedere_training_{name}", description=text, tag_keys=keys)
        for name, (text, keys) in described.items()
    }


def agreed(value: Any, world: World) -> Any:
    """Return rank 0's value on every rank."""
    if world.size == 1:
        return value
    box = [value]
    distributed.broadcast_object_list(box, src=0)
    return box[0]


def mean_over_workers(value: float, world: World) -> float:
    """Return the mean of the ranks' values."""
    if world.size == 1:
        return value
    total = torch.tensor([value], device=world.device)
    distributed.all_reduce(total)
    return float(total.item()) / world.size


@contextmanager
def all_cores(world: World) -> Iterator[None]:
    """Let rank 0 use every core while the others wait for it."""
    own = torch.get_num_threads()
    torch.set_num_threads(world.cores)
    try:
        yield
    finally:
        torch.set_num_threads(own)
