"""Where a run takes place: which worker this is, and how it reports and keeps checkpoints. One process, or Ray Train."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as distributed

from belvedere_training.checkpoint import Background, CheckpointFolder, part_name, part_of, read_state, write_part

_ASK_EVERY_STEPS = 16


class World(Protocol):
    """What a worker knows of the others and of the outside."""

    rank: int
    size: int
    cores: int
    device: torch.device

    def last_checkpoint(self) -> dict[str, Any] | None:
        """Return the newest saved state, if there is one."""
        ...

    def keep(self, state: Mapping[str, Any], metrics: Mapping[str, Any]) -> None:
        """Save this worker's share of the state, in the background. Every rank must call it, at the same position."""
        ...

    def settle(self) -> None:
        """Return when everything that `keep` began is safe; raises what went wrong with it."""
        ...

    def leaving(self, position: int) -> bool:
        """Return whether this place is about to be taken away. Every rank must ask at the same positions."""
        ...

    def ends_when_leaving(self) -> bool:
        """Return whether the run is to end once its state is safe, or goes on until it is ended."""
        ...

    def evidence(self, name: str, data: bytes) -> str:
        """Put a file where it outlives the run, and return where."""
        ...

    def say(self, metrics: Mapping[str, Any]) -> None:
        """Publish live metrics; called on rank 0."""
        ...


def say_line(metrics: Mapping[str, Any]) -> None:
    """Write one JSON line. Not with print, which Ray Train replaces by one that writes every line twice."""
    sys.stdout.write(json.dumps(metrics) + "\n")
    sys.stdout.flush()


class LocalWorld:
    """One process. Checkpoints go to a folder, or nowhere."""

    def __init__(
        self, folder: Path | None = None, *, cores: int | None = None, notice: threading.Event | None = None
    ) -> None:
        self.rank, self.size = 0, 1
        self.cores = cores or os.cpu_count() or 1
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.folder = folder
        self.notice = notice or threading.Event()
        self._background = Background()

    def last_checkpoint(self) -> dict[str, Any] | None:
        """Return the newest state in the folder, if there is one."""
        return None if self.folder is None else CheckpointFolder(self.folder).read()

    def keep(self, state: Mapping[str, Any], metrics: Mapping[str, Any]) -> None:
        """Copy the state, and write it while training goes on."""
        if self.folder is not None:
            part, folder, position = part_of(state, 0, 1), CheckpointFolder(self.folder), int(metrics["pairs"])
            self._background.start(lambda: folder.write(part, position))

    def settle(self) -> None:
        """Wait for the last checkpoint."""
        self._background.wait()

    def leaving(self, position: int) -> bool:
        """Return whether this process was asked to end."""
        return self.notice.is_set()

    def ends_when_leaving(self) -> bool:
        """Return True: nobody else would end it."""
        return True

    def evidence(self, name: str, data: bytes) -> str:
        """Write the file beside the checkpoints, or into the folder for temporary files."""
        folder = self.folder or Path(tempfile.mkdtemp(prefix="belvedere-evidence-"))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
        return str(folder / name)

    def forget(self) -> None:
        """Remove the checkpoint of a finished run."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def say(self, metrics: Mapping[str, Any]) -> None:
        """Print the metrics as one JSON line."""
        say_line(metrics)


class RayWorld:
    """One worker of a Ray Train run; live metrics go to Ray's Prometheus exporter as well."""

    def __init__(self, namespace: str, run: str, evidence_url: str) -> None:
        import ray
        import ray.train
        import ray.train.torch

        context = ray.train.get_context()
        self.rank, self.size = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()
        self.cores = max(1, (os.cpu_count() or 1) // context.get_local_world_size()) * self.size
        self._gauges = _gauges() if self.rank == 0 else {}
        self._labels = {"namespace": namespace, "run": run}
        self._evidence_url = evidence_url
        where = {"rank": self.rank, "of": self.size, "pid": os.getpid(), "device": str(self.device)}
        say_line({"event": "worker", **where})
        self._asked = 0

    def last_checkpoint(self) -> dict[str, Any] | None:
        """Return the state that Ray Train kept last, of this attempt or an earlier one."""
        import ray.train

        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return None
        with checkpoint.as_directory() as folder:
            return read_state(Path(folder))

    def keep(self, state: Mapping[str, Any], metrics: Mapping[str, Any]) -> None:
        """Hand this worker's share to Ray Train, which uploads it while training goes on and puts the shares together."""
        import ray.train

        folder = Path(tempfile.mkdtemp(prefix="belvedere-checkpoint-"))
        try:
            write_part(part_of(state, self.rank, self.size), folder / part_name(self.rank, self.size))
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        ray.train.report(
            dict(metrics),
            checkpoint=ray.train.Checkpoint.from_directory(folder),
            checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC,
            delete_local_checkpoint_after_upload=True,
        )

    def settle(self) -> None:
        """Do nothing: Ray Train waits for its uploads before the run ends."""

    def leaving(self, position: int) -> bool:
        """Return whether a node of this run is about to be taken away. Asking is a meeting of all workers: not each step."""
        import ray.train

        self._asked += 1
        if os.environ.get("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER") == "0" or self._asked % _ASK_EVERY_STEPS:
            return False
        return ray.train.get_preemption_info() is not None

    def ends_when_leaving(self) -> bool:
        """Return False: Ray Train ends the workers and starts them elsewhere."""
        return False

    def evidence(self, name: str, data: bytes) -> str:
        """Write the file beside the run's checkpoints."""
        import fsspec

        url = f"{self._evidence_url}/{name}"
        with fsspec.open(url, "wb") as file:
            file.write(data)
        return url

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


def everybodys(value: Any, world: World) -> list[Any]:
    """Return every rank's value on every rank."""
    if world.size == 1:
        return [value]
    values: list[Any] = [None] * world.size
    distributed.all_gather_object(values, value)
    return values


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
