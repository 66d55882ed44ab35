"""An application may serve some of an engine's models: then it loads no more than they need."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from belvedere_platform.errors import InvalidInput
from belvedere_platform.protocol import EMBED_IMAGE, EMBED_TEXT, EMBEDDING, InferRequest, Reason, Tensor, V2Error
from belvedere_serving.server import engine_cache, service
from belvedere_serving.server.config import ServerConfig


async def test_one_model_alone(
    engine_folder: Path, a_config: Callable[..., ServerConfig], recorded: Any, tiny: ModuleType, tmp_path: Path
) -> None:
    folder = tmp_path / "engine"
    shutil.copytree(engine_folder, folder)
    (folder / "embed_image.onnx").unlink()  # so it must not be looked for
    config = a_config(models=[EMBED_TEXT])
    engine = engine_cache.load(folder, threads=1, models=config.models)
    service.warm_up(engine, 2)
    served = service.assemble(engine, config, recorded)
    request = InferRequest(model_name=EMBED_TEXT, inputs=(Tensor.of_bytes("TEXT", [b"red"]),))
    vector, _ = await served.infer(lambda: request, lambda _, answer: answer.output(EMBEDDING).array[0], "http")
    np.testing.assert_allclose(vector, tiny.expected_text(["red"]), atol=1e-6)
    assert [one["name"] for one in served.repository_index()] == [EMBED_TEXT]
    with pytest.raises(V2Error) as caught:
        served.model(EMBED_IMAGE)
    assert caught.value.reason is Reason.NOT_FOUND
    await served.close()


def test_a_model_that_the_engine_has_not_is_named(
    engine_folder: Path, a_config: Callable[..., ServerConfig], recorded: Any
) -> None:
    config = a_config(models=[EMBED_TEXT, "caption"])
    engine = engine_cache.load(engine_folder, threads=1, models=config.models)
    with pytest.raises(InvalidInput, match="argument models names 'caption'; this engine has embed_text"):
        service.assemble(engine, config, recorded)
