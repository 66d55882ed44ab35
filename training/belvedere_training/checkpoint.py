"""Checkpoints in parts: every worker writes its share of the state, in the background, whole or not at all."""

from __future__ import annotations

import logging
import os
import pickle
import re
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from belvedere_platform.artifacts import StorageFull
from belvedere_platform.artifacts.storage import full_disk_is_clear, sync_directory
from belvedere_platform.errors import CorruptData

_PART = re.compile(r"part-(\d+)-of-(\d+)\.pt")
_PLACE = "tensor-of-part"  # stands in the frame for a tensor: {_PLACE: number}
_SHARES = "tensor-of-shares"  # stands for one whose rows the workers share: {_SHARES: [number of each worker's rows]}
log = logging.getLogger(__name__)
KEPT = 2
"""Checkpoints that stay: one more than needed, so that there is one to fall back to."""


def part_name(rank: int, size: int) -> str:
    """Return the file name of a worker's share."""
    return f"part-{rank:04d}-of-{size:04d}.pt"


def part_of(state: Mapping[str, Any], rank: int, size: int) -> dict[str, Any]:
    """Return this worker's share as a copy that later steps do not change: its tensors, on rank 0 also all the rest.

    Tensors go, the largest first, to the worker that has least, so that all write about as much. Of a tensor in shares each
    worker writes its own rows: nothing is gathered.
    """
    tensors: list[Tensor] = []
    rows_of: dict[int, int] = {}
    frame = _framed(state, tensors, rows_of)
    loose = [number for number in range(len(tensors)) if number not in rows_of]
    owners = _owners([tensors[number].numel() * tensors[number].element_size() for number in loose], size)
    owner = rows_of | dict(zip(loose, owners, strict=True))
    own = {
        number: tensor.detach().to("cpu", copy=True) for number, tensor in enumerate(tensors) if owner[number] == rank
    }
    return {"tensors": own, "frame": frame if rank == 0 else None}


def _owners(sizes: list[int], num_workers: int) -> list[int]:
    loads = [0] * num_workers
    owners = [0] * len(sizes)
    for number in sorted(range(len(sizes)), key=lambda one: (-sizes[one], one)):
        owners[number] = loads.index(min(loads))
        loads[owners[number]] += sizes[number]
    return owners


def _framed(value: Any, tensors: list[Tensor], rows_of: dict[int, int]) -> Any:
    """Return the value with each tensor replaced by its number, the tensors gathered in the order of the walk.

    rows_of: the worker that has the rows with a number, where a tensor is in shares. Numbers are the same on all workers.
    """
    if isinstance(value, DTensor):
        first, size = len(tensors), value.device_mesh.size()
        tensors.extend([value.to_local()] * size)
        rows_of.update((first + rank, rank) for rank in range(size))
        return {_SHARES: list(range(first, first + size))}
    if isinstance(value, Tensor):
        tensors.append(value)
        return {_PLACE: len(tensors) - 1}
    if isinstance(value, Mapping):
        return {key: _framed(inner, tensors, rows_of) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_framed(inner, tensors, rows_of) for inner in value]
    return value


def _filled(frame: Any, tensors: Mapping[int, Tensor]) -> Any:
    if isinstance(frame, dict):
        if frame.keys() == {_PLACE}:
            return tensors[frame[_PLACE]]
        if frame.keys() == {_SHARES}:
            return torch.cat([tensors[number] for number in frame[_SHARES]])
        return {key: _filled(inner, tensors) for key, inner in frame.items()}
    if isinstance(frame, list):
        return [_filled(inner, tensors) for inner in frame]
    return frame


def write_part(part: Mapping[str, Any], path: Path) -> None:
    """Write one share and make it durable. StorageFull when there is no room; nothing half-written stays."""
    needed = sum(tensor.numel() * tensor.element_size() for tensor in part["tensors"].values())
    try:
        with full_disk_is_clear(str(path.parent), f"writing the checkpoint {path.name}"), path.open("wb") as file:
            torch.save(dict(part), file)
            file.flush()
            os.fsync(file.fileno())
    except RuntimeError as error:  # torch's writer hides the system's error
        path.unlink(missing_ok=True)
        if shutil.disk_usage(path.parent).free < needed:
            raise StorageFull(str(path.parent), f"writing the checkpoint {path.name}") from error
        raise
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def read_state(folder: Path) -> dict[str, Any]:
    """Return the state from all its parts, whatever the number of workers was; only tensors and plain values are read."""
    found = {int(match[1]): int(match[2]) for path in folder.iterdir() if (match := _PART.fullmatch(path.name))}
    sizes = set(found.values())
    if len(sizes) != 1 or set(found) != set(range(*sizes)):
        raise CorruptData(f"checkpoint {folder} has parts {sorted(found)} of {sorted(sizes)}: it is not whole")
    (size,) = sizes
    parts = [torch.load(folder / part_name(rank, size), map_location="cpu", weights_only=True) for rank in range(size)]
    tensors = {number: tensor for part in parts for number, tensor in part["tensors"].items()}
    state: dict[str, Any] = _filled(parts[0]["frame"], tensors)
    return state


class CheckpointFolder:
    """Checkpoints of one process in a folder, the newest few; each appears by a rename when it is whole."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, part: Mapping[str, Any], position: int) -> None:
        """Write a checkpoint and remove those that are no longer needed, never the newest whole one."""
        partial = self.folder / f".partial-{os.getpid()}-{position}"
        partial.mkdir(parents=True, exist_ok=True)
        try:
            write_part(part, partial / part_name(0, 1))
            target = self.folder / f"pairs-{position:012d}"
            shutil.rmtree(target, ignore_errors=True)
            partial.rename(target)
            sync_directory(self.folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        for old in (*self._all()[:-KEPT], *self.folder.glob(".partial-*")):
            shutil.rmtree(old, ignore_errors=True)

    def read(self) -> dict[str, Any] | None:
        """Return the newest state that can be read, or None when there is none."""
        for folder in reversed(self._all()):
            try:
                return read_state(folder)
            except (CorruptData, OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
                # Cut short by a crash of the machine: the one before it is whole.
                log.warning("checkpoint %s cannot be read, going back further: %s", folder, error or "it is empty")
        return None

    def _all(self) -> list[Path]:
        return sorted(self.folder.glob("pairs-*")) if self.folder.is_dir() else []


class Background:
    """One thing at a time in a thread. What went wrong is raised by the next call, or at the end."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="belvedere-checkpoint")
        self._running: Future[None] | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Begin with the work when the one before is done."""
        self.wait()
        self._running = self._pool.submit(work)

    def wait(self) -> None:
        """Return when nothing runs; raises what went wrong."""
        running, self._running = self._running, None
        if running is not None:
            running.result()
