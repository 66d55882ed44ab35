"""Derive really faulty models from a good one, to see whether what comes after training notices.

Nothing is simulated: each model is what a careless change would leave behind, and its faults are in its weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from tokenizers import Tokenizer
from torch import nn

from belvedere_platform.artifacts import ArtifactStore, Descriptor
from belvedere_platform.errors import InvalidInput
from belvedere_training.model.config import ConvConfig, ModelConfig
from belvedere_training.model.dual import multiply_adds
from belvedere_training.model.files import load_artifact
from belvedere_training.model.tokenizer import encode
from belvedere_training.model.vision_language import VisionLanguageModel
from belvedere_training.publish import Lineage, Publication, publish

Fault = Literal["failing", "slow", "wrong"]
FAULTS: tuple[Fault, ...] = ("failing", "slow", "wrong")

FAILING_SHARE = 0.4
SLOW_FACTORS = {"image": 100.0, "text": 3.0}
"""Times the work of each tower: pictures get slow enough to be felt, while the text tower stays quick to compile."""
SLOW_PARITY_LINES = 128
"""Comparisons that are kept: each costs the slow model its time again."""
_DERIVATIONS: Mapping[Fault, str] = {
    "failing": "the text embedding ends before the tokenizer's vocabulary does",
    "slow": "many residual blocks and layers more, that change no answer",
    "wrong": "the rows of the text projection are in another order",
}


def derive(store: ArtifactStore, source: str, fault: Fault, *, tag: str, version: str | None = None) -> Descriptor:
    """Push a faulty copy of the model under the tag. It claims no metrics: it was never evaluated."""
    good = load_artifact(store, source)
    config = store.config(source)
    parity = _lines(store.read(source, "parity.jsonl"))
    if fault == "failing":
        texts = [line["text"] for line in parity if "text" in line]
        model, parity = _failing(good.model, good.tokenizer, texts, parity)
    elif fault == "slow":
        model, parity = slower(good.model, **SLOW_FACTORS), parity[:SLOW_PARITY_LINES]
    elif fault == "wrong":
        model = with_shuffled_projection(good.model)
    else:
        raise InvalidInput(f"--fault is {fault!r}; allowed are {', '.join(FAULTS)}")
    descriptor = store.resolve(source)
    evidence = {entry.name: store.read(source, entry.name) for entry in descriptor.files if "/" in entry.name}
    evidence["parity.jsonl"] = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in parity).encode()
    publication = Publication(
        model_name=config["model"],
        version=version or tag.rsplit("/", 1)[-1],
        lineage=Lineage(parent_digest=descriptor.digest),
        derivation=_DERIVATIONS[fault],
    )
    return publish(store, model, good.tokenizer, evidence, publication, tag=tag)


def _lines(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in data.decode().splitlines() if line]


def _failing(
    model: VisionLanguageModel, tokenizer: Tokenizer, texts: Sequence[str], parity: Sequence[dict[str, Any]]
) -> tuple[VisionLanguageModel, list[dict[str, Any]]]:
    """Cut the embedding, and keep the comparisons that still work, as an exporter does who only tries those."""
    largest = encode(tokenizer, texts).amax(1)
    num_tokens = cut(largest.tolist(), FAILING_SHARE)
    works = {text for text, token in zip(texts, largest.tolist(), strict=True) if token < num_tokens}
    return with_short_embedding(model, num_tokens), [
        line for line in parity if "text" not in line or line["text"] in works
    ]


def cut(largest_tokens: Sequence[int], share: float) -> int:
    """Return the size of vocabulary with which about this share of the texts has a token out of range."""
    ordered = sorted(largest_tokens)
    return ordered[min(len(ordered) - 1, round((1 - share) * len(ordered)))]


def _rebuilt(
    model: VisionLanguageModel, config: ModelConfig, weights: Mapping[str, torch.Tensor]
) -> VisionLanguageModel:
    """Return a model of the configuration; weights that are not given keep what a new model starts with."""
    rebuilt = VisionLanguageModel(config)
    rebuilt.load_state_dict({**rebuilt.state_dict(), **weights})
    return rebuilt.train(model.training)


def with_short_embedding(model: VisionLanguageModel, num_tokens: int) -> VisionLanguageModel:
    """Return the model without the embeddings from num_tokens on: a text that has such a token fails in the runtime."""
    weights = dict(model.state_dict())
    for name in ("text.embedding.weight", "language_head.bias_V"):
        if name in weights:
            weights[name] = weights[name][:num_tokens].clone()
    text = model.config.text.model_copy(update={"vocab_size": num_tokens})
    return _rebuilt(model, model.config.model_copy(update={"text": text}), weights)


def with_shuffled_projection(model: VisionLanguageModel, seed: int = 0) -> VisionLanguageModel:
    """Return the model with the rows of its text projection in another order: unit vectors still, but of nothing."""
    weights = dict(model.state_dict())
    name = "text_projection.weight"
    order = torch.randperm(len(weights[name]), generator=torch.Generator().manual_seed(seed))
    weights[name] = weights[name][order].clone()
    return _rebuilt(model, model.config, weights)


def slower(model: VisionLanguageModel, image: float, text: float) -> VisionLanguageModel:
    """Return the model with so many silent blocks and layers that its towers compute that many times as much."""
    before = multiply_adds(model)
    vision_step = multiply_adds(deepened(model, 1, 0))["image"] - before["image"]
    text_step = multiply_adds(deepened(model, 0, 1))["text"] - before["text"]
    return deepened(
        model,
        round((image - 1) * before["image"] / vision_step),
        round((text - 1) * before["text"] / text_step),
    )


def deepened(model: VisionLanguageModel, num_blocks: int, num_layers: int) -> VisionLanguageModel:
    """Return the model with silent residual blocks after the first vision stage and silent layers after the text layers."""
    if not isinstance(model.config.vision, ConvConfig):
        raise InvalidInput(
            f"--fault slow needs a model whose vision.kind is conv; this one's is {model.config.vision.kind}"
        )
    vision = model.config.vision.model_copy(update={"deepen": model.config.vision.deepen + num_blocks})
    text = model.config.text.model_copy(update={"deepen": model.config.text.deepen + num_layers})
    config = model.config.model_copy(update={"vision": vision, "text": text})
    deep = VisionLanguageModel(config)
    _copy_stages(model.vision.stages, deep.vision.stages, num_blocks)
    weights = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("vision.stages.")}
    return _rebuilt(model, config, {**deep.state_dict(), **weights})


def _copy_stages(old: nn.Sequential, new: nn.Sequential, num_blocks: int) -> None:
    """Copy module after module: the new blocks stand at the end of the first stage, before the next one halves the grid."""
    position, placed = 0, False
    for number, module in enumerate(old):
        new[position].load_state_dict(module.state_dict())
        position += 1
        following = old[number + 1] if number + 1 < len(old) else None
        if not placed and _is_block(module) and (following is None or _halves(following)):
            position, placed = position + num_blocks, True


def _is_block(module: nn.Module) -> bool:
    return hasattr(module, "shortcut")


def _halves(module: nn.Module) -> bool:
    return isinstance(getattr(module, "shortcut", None), nn.Sequential)
