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
from belvedere_serving.server import cache_limit

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
    """Return the folder with the engine's files, which are checked against the digest each time.

    It stays until this process ends. Before one is pulled, engines that no process uses make room (`cache_limit`).
    """
    name = digest.removeprefix("sha256:")
    target = cache / name
    limit = cache_limit.limit_bytes()
    target.parent.mkdir(parents=True, exist_ok=True)
    store = ArtifactStore(artifacts)
    # What is held is never let go by hand: the kernel does it when the process ends.
    if cache_limit.hold(target) is not None:
        return store.pull(digest, target)
    while True:
        size = sum(entry.size for entry in store.resolve(digest).files)
        cache_limit.make_room(cache, incoming=name, size=size, limit=limit)
        store.pull(digest, target)
        # Another process may take its room in the moment between the two.
        if cache_limit.hold(target) is not None:
            return target


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
