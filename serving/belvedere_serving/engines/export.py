"""From a torch program to a verified ONNX file."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from belvedere_platform.errors import BelvedereError
from belvedere_platform.protocol import EMBEDDING
from belvedere_serving.engines.runtime import TOWER_INPUT

OPSET = 20


class ExportFailed(BelvedereError):
    """A program cannot be expressed in ONNX."""


def export(program: Any, tower: str, target: Path) -> None:
    """Write a tower's program as ONNX and check it: inputs, outputs, a batch of any size. Raises ExportFailed."""
    _check_interface(to_onnx(program, tower, (TOWER_INPUT[tower],), (EMBEDDING,), target), tower)


def to_onnx(program: Any, name: str, inputs: Sequence[str], outputs: Sequence[str], target: Path) -> Any:
    """Write a program as ONNX with these names, and return its graph. Raises ExportFailed."""
    import onnx
    import torch

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # The exporter warns of its own internals; what matters is checked below and by parity.
            warnings.simplefilter("ignore")
            exported = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                input_names=list(inputs),
                output_names=list(outputs),
            )
        assert exported is not None
        exported.save(target, external_data=False)
        model = onnx.load(target)
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:
        raise ExportFailed(f"{name} cannot be exported to ONNX opset {OPSET}: {error}") from error
    return model.graph


def _check_interface(graph: Any, tower: str) -> None:
    names = [value.name for value in graph.input], [value.name for value in graph.output]
    if names != ([TOWER_INPUT[tower]], [EMBEDDING]):
        raise ExportFailed(f"{tower} has inputs {names[0]} and outputs {names[1]}; it must have one of each")
    batch = graph.input[0].type.tensor_type.shape.dim[0]
    if not batch.dim_param:
        raise ExportFailed(
            f"{tower} takes a batch of {batch.dim_value} only; export it with a dynamic first dimension of '{TOWER_INPUT[tower]}'"
        )
