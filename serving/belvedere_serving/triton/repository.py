"""Writes a Triton model repository from the files of an engine: configuration, engine, and our code for the Python backend."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt

from belvedere_platform.errors import CorruptData, InvalidInput
from belvedere_platform.protocol import EMBED_IMAGE, EMBED_TEXT
from belvedere_serving.engines.loading import ENGINE_FILE as VARIANT_FILE
from belvedere_serving.engines.loading import load_runtime
from belvedere_serving.engines.preprocess import ImagePreprocessor, Recipe, TextPreprocessor
from belvedere_serving.engines.runtime import TOWER_INPUT
from belvedere_serving.triton import model_config
from belvedere_serving.triton.model_config import ENGINE_FILE, Tower
from belvedere_serving.triton.model_file import model_file
from belvedere_serving.triton.options import EngineBackend, RepositoryOptions

Files = dict[str, Path | bytes]
_SUFFIX: Mapping[EngineBackend, tuple[str, ...]] = {
    "onnxruntime": (".onnx",),
    "tensorrt": (".plan",),
    "openvino": (".xml", ".bin"),
}
"""By backend of Triton, the endings of an engine's files."""


def write_repository(engine: Path, target: Path, options: RepositoryOptions) -> Path:
    """Write the repository of the engine in a folder into an empty or new one, and return it."""
    if target.exists() and any(target.iterdir()):
        raise InvalidInput(f"{target} is not empty: a repository is written into a folder of its own")
    for tower, sample in _towers(engine, options).items():
        _write_model(target, model_config.pipeline(tower, options), {}, options)
        prepared: Files = {name: engine / name for name in ("preprocess.json", "tokenizer.json")}
        prepared |= {"model.py": model_file("preprocess_model")}
        _write_model(target, model_config.preprocess(tower, options), prepared, options)
        folder = _write_model(
            target, model_config.engine(tower, options), _engine_files(engine, tower.name, options), options
        )
        (folder / "warmup").mkdir()
        (folder / "warmup" / TOWER_INPUT[tower.name]).write_bytes(sample.tobytes())
    return target


def _towers(engine: Path, options: RepositoryOptions) -> dict[Tower, npt.NDArray[Any]]:
    """Return each tower with an input of it: an empty text, a white picture."""
    recipe = Recipe.read(engine / "preprocess.json")
    text = TextPreprocessor((engine / "tokenizer.json").read_text(encoding="utf-8"), recipe.text)([b""])
    inputs: dict[str, npt.NDArray[Any]] = {EMBED_TEXT: text, EMBED_IMAGE: ImagePreprocessor(recipe.image).blank()}
    runtime = load_runtime(engine, tuple(inputs), threads=options.threads)
    return {
        Tower(name=name, input_shape=array.shape[1:], dimension=runtime.dimension(name)): array
        for name, array in inputs.items()
    }


def _engine_files(engine: Path, tower: str, options: RepositoryOptions) -> Files:
    if options.backend == "python":
        own = {path.name: path for path in engine.iterdir() if path.stem == tower or path.name == VARIANT_FILE}
        return {**own, "model.py": model_file("engine_model")}
    given = {suffix: engine / f"{tower}{suffix}" for suffix in _SUFFIX[options.backend]}
    missing = [path.name for path in given.values() if not path.is_file()]
    if missing:
        raise CorruptData(
            f"the engine lacks {', '.join(missing)}, which Triton's backend {options.backend} reads; "
            f"build it with another --runtime, or choose another --backend"
        )
    return {Path(ENGINE_FILE[options.backend]).stem + suffix: path for suffix, path in given.items()}


def _write_model(target: Path, config: Any, files: Files, options: RepositoryOptions) -> Path:
    folder: Path = target / config.name
    version = folder / str(options.version_number)
    version.mkdir(parents=True)
    (folder / "config.pbtxt").write_text(model_config.render(config), encoding="utf-8")
    for name, source in files.items():
        if isinstance(source, bytes):
            (version / name).write_bytes(source)
        else:
            _bring(source, version / name)
    return folder


def _bring(source: Path, target: Path) -> None:
    """Link the file, or copy it where a link cannot be made: an engine may be large, and its cache is never written to."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
