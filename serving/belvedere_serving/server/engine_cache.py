"""Brings an engine to this node: pulled by digest, verified, kept for the next replica."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from belvedere_platform.artifacts import ArtifactStore
from belvedere_platform.errors import CorruptData
from belvedere_platform.protocol import EMBED_IMAGE, EMBED_TEXT
from belvedere_serving.engines.preprocess import ImagePreprocessor, Recipe, TextPreprocessor
from belvedere_serving.engines.runtime import OnnxRuntime

TOWERS = (EMBED_TEXT, EMBED_IMAGE)


@dataclass(frozen=True, kw_only=True)
class LoadedEngine:
    """An engine in memory with what prepares its inputs."""

    runtime: OnnxRuntime
    text: TextPreprocessor
    image: ImagePreprocessor


def cache_folder() -> Path:
    """Return where engines are kept on this node."""
    root = os.environ.get("BELVEDERE_CACHE") or Path.home() / ".cache" / "belvedere"
    return Path(root) / "engines"


def fetch(artifacts: str, digest: str, cache: Path) -> Path:
    """Return the folder with the engine's files, which are checked against the digest each time."""
    target = cache / digest.removeprefix("sha256:")
    target.parent.mkdir(parents=True, exist_ok=True)
    return ArtifactStore(artifacts).pull(digest, target)


def load(folder: Path, *, threads: int) -> LoadedEngine:
    """Return the engine in a folder."""
    missing = [name for tower in TOWERS if not (folder / (name := f"{tower}.onnx")).is_file()]
    if missing:
        raise CorruptData(f"the engine lacks {', '.join(missing)}; build it again with `belvedere engine build`")
    recipe = Recipe.read(folder / "preprocess.json")
    return LoadedEngine(
        runtime=OnnxRuntime({tower: folder / f"{tower}.onnx" for tower in TOWERS}, threads=threads),
        text=TextPreprocessor((folder / "tokenizer.json").read_text(encoding="utf-8"), recipe.text),
        image=ImagePreprocessor(recipe.image),
    )
