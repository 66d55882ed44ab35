"""Runs inside Triton's Python backend: from texts or encoded pictures to arrays, by the code of the Ray Serve server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from belvedere_platform.protocol import EMBED_TEXT, INPUT_OF, V2Error, invalid
from belvedere_serving.engines.preprocess import ImagePreprocessor, Recipe, TextPreprocessor
from belvedere_serving.engines.runtime import TOWER_INPUT
from belvedere_serving.triton.backend import parameters_of, triton_error


class TritonPythonModel:
    """One instance of a `…_preprocess` model."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the recipe that lies beside this file."""
        parameters = parameters_of(args)
        folder = Path(args["model_repository"]) / args["model_version"]
        self._tower = parameters["tower"]
        self._max_rows = int(parameters["max_rows"])
        recipe = Recipe.read(folder / "preprocess.json")
        self._prepare: Any
        if self._tower == EMBED_TEXT:
            text = TextPreprocessor((folder / "tokenizer.json").read_text(encoding="utf-8"), recipe.text)
            self._prepare = text.shortened if parameters["lengths"] == "any" else text
        else:
            self._prepare = ImagePreprocessor(recipe.image)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Prepare the inputs of each request; a request at fault gets its error alone."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        try:
            return pb_utils.InferenceResponse([self._prepared(request)])
        except V2Error as error:
            return pb_utils.InferenceResponse(error=triton_error(pb_utils, error))

    def _prepared(self, request: Any) -> Any:
        elements = pb_utils.get_input_tensor_by_name(request, INPUT_OF[self._tower]).as_numpy().tolist()
        if not 1 <= len(elements) <= self._max_rows:
            raise invalid(f"{len(elements)} inputs sent; one request may have 1 to {self._max_rows}")
        return pb_utils.Tensor(TOWER_INPUT[self._tower], np.ascontiguousarray(self._prepare(elements)))
