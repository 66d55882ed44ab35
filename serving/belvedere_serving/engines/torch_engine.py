"""The reference engine: the exported programs of the model, run by torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from belvedere_platform.protocol import EMBEDDING
from belvedere_serving.engines.runtime import TOWER_INPUT, Arrays


class TorchEngine:
    """Runs `NAME.pt2` files, as they came from training, in fp32."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        import torch

        self._torch = torch
        self.programs = {name: torch.export.load(path) for name, path in files.items()}
        self._modules = {name: program.module() for name, program in self.programs.items()}

    def run(self, model_name: str, arrays: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Return the outputs for a batch."""
        given = self._torch.from_numpy(np.ascontiguousarray(arrays[TOWER_INPUT[model_name]]))
        with self._torch.inference_mode():
            return {EMBEDDING: self._modules[model_name](given).numpy()}

    def dimension(self, model_name: str) -> int:
        """Return the length of the model's embeddings."""
        graph = self.programs[model_name].graph
        (output,) = (node for node in graph.nodes if node.op == "output")
        return int(output.args[0][0].meta["val"].shape[-1])

    def flexible(self, model_name: str) -> bool:
        """Whether the model takes texts of any length up to its longest."""
        program = self.programs[model_name]
        (given,) = (node for node in program.graph.nodes if node.name == program.graph_signature.user_inputs[0])
        return not isinstance(given.meta["val"].shape[1], int)
