"""OpenCLIP's side of the step comparison; runs in an environment that has open_clip_torch.

usage: open_clip_step.py prepare FILE    write weights, a batch and what the model makes of it
       open_clip_step.py serve FILE      train on that batch when told
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import open_clip
import torch
from open_clip.loss import ClipLoss
from safetensors.torch import load_file, save_file

from step_server import DEVICE, autocast, serve

MODEL = "ViT-S-32"
CAPTIONS = (
    "a man in a yellow jacket rides a bicycle along the beach",
    "two cats asleep on a blue sofa next to a window",
    "a plate of pasta with tomatoes and fresh basil on a wooden table",
    "children playing football in a park on a cloudy afternoon",
    "an old red train crossing a stone bridge over the river",
    "a close up of a bee on a purple flower",
    "a woman reads a newspaper while waiting for the bus",
    "snow covered mountains behind a small village at sunrise",
)


def prepare(path: Path, batch: int) -> None:
    """Write the weights of a new model, a batch, and the model's own embeddings of it."""
    torch.manual_seed(0)
    model = open_clip.create_model(MODEL, pretrained=None).eval()
    tokens = open_clip.get_tokenizer(MODEL)([CAPTIONS[row % len(CAPTIONS)] for row in range(batch)])
    size = model.visual.image_size[0]
    pixels = torch.randn(batch, 3, size, size)
    with torch.no_grad():
        image, text, scale = model(pixels, tokens)
    weights = {f"weights.{name}": tensor.contiguous() for name, tensor in model.state_dict().items()}
    outputs = {"image": image, "text": text, "scale": scale}
    facts = {"model": MODEL, "open_clip": open_clip.__version__, "heads": json.dumps(_heads())}
    save_file({**weights, "pixels": pixels, "tokens": tokens, **outputs}, path, metadata=facts)


def _heads() -> dict[str, int]:
    config = open_clip.get_model_config(MODEL)
    vision = config["vision_cfg"]
    return {"vision": vision["width"] // vision.get("head_width", 64), "text": config["text_cfg"]["heads"]}


def make_step(path: Path) -> Callable[[], float]:
    """Return OpenCLIP's training step: its model, its loss, AdamW as its trainer makes it, the clamp of its scale."""
    data = load_file(path, device=str(DEVICE))
    model = open_clip.create_model(MODEL, pretrained=None).to(DEVICE).train()
    model.load_state_dict({n.removeprefix("weights."): t for n, t in data.items() if n.startswith("weights.")})
    loss_of = ClipLoss()
    plain = [p for n, p in model.named_parameters() if p.ndim < 2 or "bn" in n or "ln" in n or "logit_scale" in n]
    decayed = [p for p in model.parameters() if all(p is not other for other in plain)]
    groups = [{"params": plain, "weight_decay": 0.0}, {"params": decayed, "weight_decay": 0.2}]
    optimizer = torch.optim.AdamW(groups, lr=5e-4, betas=(0.9, 0.98), eps=1e-6)
    pixels, tokens = data["pixels"], data["tokens"]

    def step() -> float:
        optimizer.zero_grad()
        with autocast():
            image, text, scale = model(pixels, tokens)
            loss = loss_of(image, text, scale)
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, 4.6052)
        return float(loss.detach())

    return step


if __name__ == "__main__":
    torch.set_num_threads(1)
    verb, file = sys.argv[1], Path(sys.argv[2])
    if verb == "prepare":
        prepare(file, int(sys.argv[3]))
    else:
        serve(lambda: make_step(file))
