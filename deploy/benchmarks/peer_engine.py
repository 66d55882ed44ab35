"""What the peers run: the engine with its preprocessing, one run at a time, as on our servers."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from belvedere_platform.protocol import EMBED_IMAGE, EMBED_TEXT, EMBEDDING
from belvedere_serving.engines.loading import load_runtime
from belvedere_serving.engines.preprocess import ImagePreprocessor, Recipe, TextPreprocessor
from belvedere_serving.engines.runtime import TOWER_INPUT


class Engine:
    """An engine in a folder."""

    def __init__(self, folder: Path) -> None:
        recipe = Recipe.read(folder / "preprocess.json")
        text = TextPreprocessor((folder / "tokenizer.json").read_text(encoding="utf-8"), recipe.text)
        self._prepare: dict[str, Any] = {EMBED_TEXT: text, EMBED_IMAGE: ImagePreprocessor(recipe.image)}
        self._runtime = load_runtime(folder, (EMBED_TEXT, EMBED_IMAGE), threads=1)
        self._lane = threading.Lock()

    def run(self, name: str, elements: list[bytes]) -> Any:
        """Return the embeddings."""
        rows = self._prepare[name](elements)
        with self._lane:
            return self._runtime.run(name, {TOWER_INPUT[name]: rows})[EMBEDDING]
