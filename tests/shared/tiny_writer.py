"""A tiny real model that sees both modalities, as the heads of an engine: the modules that training exports, called in torch."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from belvedere_platform.artifacts import ArtifactStore
from belvedere_platform.artifacts.layout import ArtifactKind
from belvedere_platform.protocol import EMBED_IMAGE, EMBED_TEXT
from belvedere_serving.engines.heads import build_heads
from belvedere_serving.engines.preprocess import ImagePreprocessor, ImageRecipe, Recipe, TextPreprocessor, TextRecipe
from belvedere_serving.engines.source import HeldOut
from belvedere_serving.generation.decoder import Heads
from belvedere_serving.generation.generator import write_alone
from belvedere_serving.server.admission import Lane
from belvedere_serving.server.config import ServerConfig
from belvedere_serving.server.head_models import EnginePlace, head_models
from belvedere_serving.server.metrics import NoMetrics
from belvedere_serving.server.service import InferenceService
from belvedere_serving.server.waiting import BatchPolicy
from belvedere_training.model.config import FusionConfig, ModelConfig, TextConfig, VitConfig
from belvedere_training.model.decoding import DecodeState, DecodeStep, EncodeImage, Match, geometry
from belvedere_training.model.export_heads import export_heads
from belvedere_training.model.tokenizer import END, learn
from belvedere_training.model.vision_language import VisionLanguageModel

EDGE, WORDS = 16, ["a red circle on the left", "a blue square", "what colour is it? 红色的圆"]
_TEXT = TextRecipe(context_length=40)
_IMAGE = ImageRecipe(size=EDGE, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


class TorchHeads:
    """What `HeadPrograms` is for the programs of an engine."""

    def __init__(self, topology: str = "fusion", *, seed: int = 3, layers: tuple[int, int] = (1, 2)) -> None:
        """`layers`: of the text tower and of fusion."""
        self.tokenizer = learn(WORDS, 320, 40, generative=True)
        end, vocabulary = self.tokenizer.token_to_id(END), self.tokenizer.get_vocab_size()
        torch.manual_seed(seed)
        text = TextConfig(vocab_size=vocabulary, max_length=40, hidden_size=16, num_layers=layers[0], num_heads=2)
        vision = VitConfig(image_size=EDGE, patch_size=8, hidden_size=16, num_layers=1, num_heads=2)
        fusion = FusionConfig(num_layers=layers[1], num_heads=2)
        config = ModelConfig(topology=topology, embed_dim=8, vision=vision, text=text, fusion=fusion)  # type: ignore[arg-type]
        self.model = VisionLanguageModel(config).eval()
        # Words of a new model hardly differ from each other; these do, and the end is among the likely ones.
        torch.nn.init.normal_(self.model.text.embedding.weight, std=1.0)
        self.model.language_head.bias_V.data[end] = 1.0
        self._encode, self._match = EncodeImage(self.model), Match(self.model)
        self._state, self._step = DecodeState(self.model), DecodeStep(self.model)
        decoder = {**geometry(config), "startId": 1, "endId": end, "picture": [4, layers[1], 2, 16]}
        self.heads = Heads.model_validate({"features": [4, 16], "match": True, "decoder": decoder})
        assert self.heads.decoder is not None
        self.geometry = self.heads.decoder

    def encode(self, pixels: Any) -> Any:
        return _call(self._encode, pixels)

    def match(self, features: Any, tokens: Any) -> Any:
        return _call(self._match, features, tokens)

    def picture(self, features: Any) -> Any:
        return _call(self._state, features)

    def step(self, *given: Any) -> Any:
        return _call(self._step, *given)


def _call(module: torch.nn.Module, *given: Any) -> Any:
    with torch.inference_mode():
        found = module(*(torch.from_numpy(np.ascontiguousarray(one)) for one in given))
    return tuple(one.numpy() for one in found) if isinstance(found, tuple) else found.numpy()


def writing_service(**changes: Any) -> InferenceService:
    """Return a service with the heads alone."""
    heads = TorchHeads()
    arguments = {"service": "writer", "model": "writer", "version": "v1", "artifacts": "file:///nowhere"}
    config = ServerConfig.parse({**arguments, "engineDigest": "sha256:" + "0" * 64, **changes})
    executors = [ThreadPoolExecutor(1), ThreadPoolExecutor(1)]
    policy = BatchPolicy(max_rows=4, wait_seconds=0.002, max_waiting_rows=64)
    place = EnginePlace(executor=executors[0], preparing=executors[1], lane=Lane(), policy=policy)
    text = TextPreprocessor(heads.tokenizer.to_str(), _TEXT)
    image = ImagePreprocessor(_IMAGE)
    models = head_models(heads, text, image, config, NoMetrics(), place)  # type: ignore[arg-type]
    return InferenceService(models, NoMetrics(), model_name="writer", version="v1", executors=executors)


def push_engine(heads: TorchHeads, store: ArtifactStore, folder: Path) -> str:
    """Store an engine that has the heads alone, and return its digest."""
    for name, content in export_heads(heads.model, heads.tokenizer).items():
        (folder / name).write_bytes(content)
    pictures = np.random.default_rng(2).normal(size=(2, 3, EDGE, EDGE)).astype(np.float32)
    tokens = np.pad(np.full((2, 5), 2), ((0, 0), (0, 35)))
    held_out = {EMBED_IMAGE: HeldOut(("0", "1"), pictures), EMBED_TEXT: HeldOut(("0", "1"), tokens)}
    files: dict[str, Path | bytes] = dict(build_heads(folder, held_out, lambda line: None).files)
    recipe = Recipe(image=_IMAGE, text=_TEXT)
    files["preprocess.json"] = recipe.model_dump_json(by_alias=True).encode()
    files["tokenizer.json"] = heads.tokenizer.to_str().encode()
    return store.push(ArtifactKind.ENGINE, files, config={"modelDigest": "sha256:" + "0" * 64}).digest


def words_about(heads: TorchHeads, picture: bytes, most: int) -> str:
    """Return what the model says of a picture, without cache, batch or server."""
    state = heads.picture(heads.encode(ImagePreprocessor(_IMAGE)([picture])))[0]
    words = write_alone(heads, state, [heads.geometry.start_id], most)
    return TextPreprocessor(heads.tokenizer.to_str(), _TEXT).words(words).strip()
