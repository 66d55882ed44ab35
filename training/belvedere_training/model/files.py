"""A model as files: weights as safetensors, its configuration and tokenizer as JSON. Nothing here is pickled."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from belvedere_platform.artifacts import ArtifactStore
from belvedere_platform.errors import CorruptData
from belvedere_training.model.config import ModelConfig, migrated
from belvedere_training.model.dual import DualStream
from belvedere_training.model.vision_language import VisionLanguageModel
from belvedere_training.validation import parse

WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "model.json", "tokenizer.json"


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model in evaluation mode, with the tokenizer that it was trained with."""

    model: VisionLanguageModel
    tokenizer: Tokenizer


def save(model: DualStream, tokenizer: Tokenizer, folder: Path) -> dict[str, Path]:
    """Write the three files and return them by name."""
    files = {name: folder / name for name in (WEIGHTS, CONFIG, TOKENIZER)}
    weights = {
        name: tensor.detach().float().contiguous()
        for name, tensor in model.state_dict().items()
        if tensor.is_floating_point()
    }
    save_file(weights, files[WEIGHTS])
    files[CONFIG].write_text(json.dumps(model.config.model_dump(mode="json", by_alias=True), indent=1))
    tokenizer.save(str(files[TOKENIZER]))
    return files


def load(folder: Path) -> LoadedModel:
    """Return the model of a folder; CorruptData when weights and configuration do not belong together."""
    config = parse(ModelConfig, migrated(json.loads((folder / CONFIG).read_text())), where=CONFIG)
    model = VisionLanguageModel(config)
    weights = load_file(folder / WEIGHTS)
    missing, unexpected = model.load_state_dict(weights, strict=False) if _fits(model, weights) else (["shapes"], [])
    # Batch norm counts its batches in an integer that no result depends on; it is not stored.
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing or unexpected:
        raise CorruptData(f"{WEIGHTS} does not fit {CONFIG}: {', '.join([*missing, *unexpected][:4])} …")
    return LoadedModel(model=model.eval(), tokenizer=Tokenizer.from_file(str(folder / TOKENIZER)))


def _fits(model: DualStream, weights: dict[str, object]) -> bool:
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    return all(
        shapes.get(name, getattr(tensor, "shape", None)) == getattr(tensor, "shape", None)
        for name, tensor in weights.items()
    )


def load_artifact(store: ArtifactStore, reference: str) -> LoadedModel:
    """Return the model of a tag or digest."""
    with tempfile.TemporaryDirectory(prefix="belvedere-model-") as folder:
        for name in (WEIGHTS, CONFIG, TOKENIZER):
            (Path(folder) / name).write_bytes(store.read(reference, name))
        return load(Path(folder))
