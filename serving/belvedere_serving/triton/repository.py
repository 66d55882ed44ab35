"""Writes a Triton model repository from the files of an engine: configuration, engine, and our code for the Python backend."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt
from PIL import Image

from belvedere_platform.errors import CorruptData, InvalidInput
from belvedere_platform.protocol import EMBED_IMAGE, EMBED_TEXT, INPUT_OF
from belvedere_serving.engines.loading import ENGINE_FILE as VARIANT_FILE
from belvedere_serving.engines.loading import read_shapes, read_variant
from belvedere_serving.engines.preprocess import WHITE, ImagePreprocessor, Recipe, TextPreprocessor
from belvedere_serving.generation.decoder import Heads
from belvedere_serving.triton import model_config
from belvedere_serving.triton.heads import head_config, head_files, head_names
from belvedere_serving.triton.model_config import ENGINE_FILE, Tower, warm_up_file
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
    if read_variant(engine).runtime == "litert":
        raise InvalidInput(
            "Triton has no backend for LiteRT: build the engine with another --runtime, or serve it by Ray Serve"
        )
    for tower, sample in _towers(engine, options).items():
        _write_model(target, model_config.pipeline(tower, options), {}, options)
        prepared: Files = {name: engine / name for name in ("preprocess.json", "tokenizer.json")}
        prepared |= {"model.py": model_file("preprocess_model")}
        folder = _write_model(target, model_config.preprocess(tower, options), prepared, options)
        element = b"" if tower.name == EMBED_TEXT else _white_picture()
        _warm_up_with(folder, {INPUT_OF[tower.name]: model_config.warm_up_element(element)})
        folder = _write_model(
            target, model_config.engine(tower, options), _engine_files(engine, tower.name, options), options
        )
        inputs = {
            warm_up_file(tower, shape): sample[:, : shape[0]].tobytes() if tower.flexible else sample.tobytes()
            for shape in tower.shapes
        }
        _warm_up_with(folder, inputs)
    write_heads(engine, target, options)
    return target


def write_heads(engine: Path, target: Path, options: RepositoryOptions) -> None:
    """Write the models of the engine's heads; none where it has none."""
    heads = Heads.read(engine)
    for name in head_names(heads):
        files = {**head_files(engine, heads, name), "model.py": model_file("head_model")}
        _write_model(target, head_config(name, options), files, options)


def _white_picture() -> bytes:
    # No square: it is scaled and padded, as most are.
    out = io.BytesIO()
    Image.new("RGB", (48, 32), WHITE).save(out, "PNG")
    return out.getvalue()


def _warm_up_with(folder: Path, files: Mapping[str, bytes]) -> None:
    (folder / "warmup").mkdir()
    for name, content in files.items():
        (folder / "warmup" / name).write_bytes(content)


def _towers(engine: Path, options: RepositoryOptions) -> dict[Tower, npt.NDArray[Any]]:
    """Return each tower with an input of it: an empty text, a white picture."""
    recipe = Recipe.read(engine / "preprocess.json")
    text = TextPreprocessor((engine / "tokenizer.json").read_text(encoding="utf-8"), recipe.text)([b""])
    inputs: dict[str, npt.NDArray[Any]] = {EMBED_TEXT: text, EMBED_IMAGE: ImagePreprocessor(recipe.image).blank()}
    shapes = read_shapes(engine, tuple(inputs), threads=options.threads)
    return {
        Tower(
            name=name,
            input_shape=array.shape[1:],
            dimension=shapes[name].dimension,
            flexible=shapes[name].flexible,
        ): array
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
