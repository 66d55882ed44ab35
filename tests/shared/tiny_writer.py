"""A tiny real model that sees both modalities, as the heads of an engine: the modules that training exports, called in torch."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from belvedere_serving.engines.preprocess import ImagePreprocessor, ImageRecipe, TextPreprocessor, TextRecipe
from belvedere_serving.generation.decoder import Heads
from belvedere_serving.server.admission import Lane
from belvedere_serving.server.batching import BatchPolicy
from belvedere_serving.server.config import ServerConfig
from belvedere_serving.server.head_models import EnginePlace, head_models
from belvedere_serving.server.metrics import NoMetrics
from belvedere_serving.server.service import InferenceService
from belvedere_training.model.config import FusionConfig, ModelConfig, TextConfig, VitConfig
from belvedere_training.model.decoding import DecodeState, DecodeStep, EncodeImage, Match, geometry
from belvedere_training.model.tokenizer import END, learn
from belvedere_training.model.vision_language import VisionLanguageModel

EDGE, WORDS = 16, ["a red circle on the left", "a blue square", "what colour is it? 红色的圆"]


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
    text = TextPreprocessor(heads.tokenizer.to_str(), TextRecipe(context_length=40))
    image = ImagePreprocessor(ImageRecipe(size=EDGE, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)))
    models = head_models(heads, text, image, config, NoMetrics(), place)  # type: ignore[arg-type]
    return InferenceService(models, NoMetrics(), model_name="writer", version="v1", executors=executors)
