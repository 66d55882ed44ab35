"""Engines for LiteRT (.tflite), which runs on phones and small boards: converted by an environment of its own, run by ai-edge-litert."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from belvedere_platform.errors import CorruptData, Unavailable
from belvedere_platform.protocol import EMBEDDING
from belvedere_serving.engines.export import ExportFailed
from belvedere_serving.engines.node_cache import is_set_up, tool_folder
from belvedere_serving.engines.runtime import TOWER_INPUT, Arrays

HINT = "make litert"
_SCRIPT = Path(__file__).with_name("litert_convert.py")
_PATIENCE_SECONDS = 1800


def find_converter(environment: Mapping[str, str] = os.environ) -> Path | None:
    """Return the environment that converts: BELVEDERE_LITERT's or the cached one; None without any."""
    folder = tool_folder("litert", environment)
    return folder if is_set_up(folder) else None


def converter_version(environment: Mapping[str, str] = os.environ) -> str:
    """Return what tells one converter from another; empty without any."""
    folder = find_converter(environment)
    return (folder / "ready").read_text(encoding="utf-8").strip() if folder else ""


def convert(program: Path, tower: str, target: Path, precision: str, sample: npt.NDArray[Any]) -> None:
    """Write an exported program for one input at a time, of the shape of `sample` [1, ...]. Raises Unavailable, ExportFailed.

    The converter knows no dimension that changes: a batch is run input by input, a text in its full length.
    """
    folder = find_converter()
    if folder is None:
        raise Unavailable(
            f"the converter for LiteRT is not set up: `{HINT}` does it, or name its folder in BELVEDERE_LITERT"
        )
    given = {
        "program": str(program),
        "target": str(target),
        "precision": precision,
        "shape": list(sample.shape),
        "datatype": str(sample.dtype),
    }
    own = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    done = subprocess.run(
        [str(folder / "bin" / "python"), str(_SCRIPT), json.dumps(given)],
        env=own,
        capture_output=True,
        text=True,
        timeout=_PATIENCE_SECONDS,
        check=False,
    )
    if done.returncode or not target.is_file():
        raise ExportFailed(f"{tower} cannot be expressed in LiteRT: {done.stderr.strip()[-1500:]}")


class LiteRtRuntime:
    """Runs `NAME.tflite` files on the CPU, one input after the other."""

    def __init__(self, files: Mapping[str, Path], *, threads: int = 1) -> None:
        interpreter = _library()
        self._interpreters: dict[str, Any] = {}
        for name, path in files.items():
            try:
                opened = interpreter(model_path=str(path), num_threads=threads)
                opened.allocate_tensors()
            except (ValueError, RuntimeError) as error:
                raise CorruptData(f"LiteRT cannot load {path}: {error}") from error
            self._interpreters[name] = opened

    def run(self, model_name: str, arrays: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Return the outputs for a batch."""
        opened = self._interpreters[model_name]
        (given,), (answer,) = opened.get_input_details(), opened.get_output_details()
        rows = arrays[TOWER_INPUT[model_name]].astype(given["dtype"], copy=False)
        outputs = np.empty((len(rows), self.dimension(model_name)), np.float32)
        for number in range(len(rows)):
            opened.set_tensor(given["index"], rows[number : number + 1])
            opened.invoke()
            outputs[number] = opened.get_tensor(answer["index"])[0]
        return {EMBEDDING: outputs}

    def dimension(self, model_name: str) -> int:
        """Return the length of the model's embeddings."""
        (answer,) = self._interpreters[model_name].get_output_details()
        return int(answer["shape"][-1])

    def flexible(self, model_name: str) -> bool:
        """Return that texts have one length: the converter knows no other."""
        return False


def _library() -> Any:
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise Unavailable("LiteRT is not installed here: pip install 'belvedere[litert]'") from error
    return Interpreter
