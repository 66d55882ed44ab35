"""Let a GPU add up in the same order each time: what resumes exactly on a processor is to do so there too."""

from __future__ import annotations

import os

import torch


def repeat_exactly(device: torch.device) -> None:
    """Choose kernels that give the same bits for the same input. To be called before the first product on the GPU.

    What has no such kernel is told of by torch as a warning, and goes on: it costs the last digits of a resumed run, not the run.
    """
    if device.type != "cuda":
        return
    # cuBLAS keeps its sums in workspaces; of this size each stream has its own (NVIDIA, cuBLAS, "Results reproducibility").
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
