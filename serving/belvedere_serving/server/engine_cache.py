"""Brings an engine to this node: pulled by digest, verified, kept for the next replica."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from belvedere_platform.artifacts import ArtifactStore
from belvedere_platform.protocol import EMBED_IMAGE, EMBED_TEXT
from belvedere_serving.engines.loading import LoadedRuntime, load_runtime
from belvedere_serving.engines.node_cache import cache_root
from belvedere_serving.engines.preprocess import ImagePreprocessor, Recipe, TextPreprocessor
from belvedere_serving.generation.decoder import HeadPrograms, onnx_heads

TOWERS = (EMBED_TEXT, EMBED_IMAGE)


@dataclass(frozen=True, kw_only=True)
class LoadedEngine:
    """An engine in memory with what prepares its inputs."""

    runtime: LoadedRuntime
    text: TextPreprocessor
    image: ImagePreprocessor
    heads: HeadPrograms | None = None
    """What sees both modalities; None where they never meet."""
    towers: tuple[str, ...] = TOWERS
    """Which towers are in memory."""


def cache_folder() -> Path:
    """Return where engines are kept on this node."""
    return cache_root() / "engines"


def fetch(artifacts: str, digest: str, cache: Path) -> Path:
    """Return the folder with the engine's files, which are checked against the digest each time."""
    target = cache / digest.removeprefix("sha256:")
    target.parent.mkdir(parents=True, exist_ok=True)
    return ArtifactStore(artifacts).pull(digest, target)


def load(folder: Path, *, threads: int, models: Collection[str] = ()) -> LoadedEngine:
    """Return the engine in a folder: what some models need of it, or all without any."""
    towers = tuple(tower for tower in TOWERS if not models or tower in models)
    runtime = load_runtime(folder, towers, threads=threads)
    recipe = Recipe.read(folder / "preprocess.json")
    return LoadedEngine(
        runtime=runtime,
        text=TextPreprocessor((folder / "tokenizer.json").read_text(encoding="utf-8"), recipe.text),
        image=ImagePreprocessor(recipe.image),
        heads=onnx_heads(folder, threads=threads) if not models or set(models) - set(TOWERS) else None,
        towers=towers,
    )
