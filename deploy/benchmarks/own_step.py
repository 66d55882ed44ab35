"""Our side of the step comparison, and the memory of GradCache, each in a process of its own.

usage: own_step.py serve FILE [--full-context]   train on the batch of open_clip_step.py when told
       own_step.py gradcache ROWS CHUNK          train a small model on so many rows at a time when told
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from belvedere_training.gradcache import Embedded, cached_backward, chunks
from belvedere_training.model.clip import from_open_clip
from belvedere_training.model.config import ModelConfig, TextConfig, VitConfig
from belvedere_training.model.text import PAD_ID
from belvedere_training.model.vision_language import VisionLanguageModel
from belvedere_training.objectives.contrastive import contrastive_loss
from step_server import DEVICE, autocast, serve

SMALL = ModelConfig(
    embed_dim=64,
    vision=VitConfig(image_size=64, patch_size=8, hidden_size=128, num_layers=4, num_heads=4),
    text=TextConfig(vocab_size=2000, hidden_size=128, num_layers=2, num_heads=4, max_length=20, dropout=0.1),
)


def converted(path: Path) -> VisionLanguageModel:
    """Return OpenCLIP's weights as our model."""
    with safe_open(path, "pt") as file:
        heads = json.loads(file.metadata()["heads"])
    weights = {name[8:]: tensor for name, tensor in load_file(path).items() if name.startswith("weights.")}
    return from_open_clip(weights, vision_heads=heads["vision"], text_heads=heads["text"])


def make_clip_step(path: Path, *, full_context: bool) -> Callable[[], float]:
    """Return our step on the same weights and batch: texts as long as the longest, fused AdamW with the same settings."""
    model = converted(path).to(DEVICE).train()
    data = load_file(path, device=str(DEVICE))
    pixels, tokens = data["pixels"], data["tokens"]
    if not full_context:
        tokens = tokens[:, : int((tokens != PAD_ID).sum(1).max())].contiguous()
    plain = [p for p in model.parameters() if p.ndim < 2]
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    groups = [{"params": plain, "weight_decay": 0.0}, {"params": decayed, "weight_decay": 0.2}]
    optimizer = torch.optim.AdamW(groups, lr=5e-4, betas=(0.9, 0.98), eps=1e-6, fused=True)

    def step() -> float:
        optimizer.zero_grad()
        with autocast():
            embedded = model(pixels, tokens)
        loss = contrastive_loss(*embedded)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss.item()

    return step


def make_cached_step(rows: int, chunk: int) -> Callable[[], float]:
    """Return a step over so many rows, a chunk at a time."""
    torch.manual_seed(0)
    model = VisionLanguageModel(SMALL).to(DEVICE).train()
    pixels, tokens = torch.randn(rows, 3, 64, 64).to(DEVICE), torch.randint(1, 2000, (rows, 20)).to(DEVICE)

    def embed(part: slice, last: bool) -> Embedded:
        return Embedded(*model(pixels[part], tokens[part]))

    def step() -> float:
        model.zero_grad(set_to_none=True)
        if chunk < rows:
            return cached_backward(embed, contrastive_loss, chunks(rows, chunk), model).item()
        loss = contrastive_loss(*model(pixels, tokens))
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    return step


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "serve":
        serve(lambda: make_clip_step(Path(sys.argv[2]), full_context="--full-context" in sys.argv))
    else:
        serve(lambda: make_cached_step(int(sys.argv[2]), int(sys.argv[3])))
