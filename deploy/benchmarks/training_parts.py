"""What the parts of the model save: recomputed activations, a quarter of the keys, a grid for a codebook, small pictures."""

from __future__ import annotations

import statistics
import time

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from belvedere_platform.telemetry.benchmark import Row, result
from belvedere_training.model.attention import CrossAttention
from belvedere_training.model.blocked import quartered
from belvedere_training.model.config import RESOLUTIONS, VitConfig, sized
from belvedere_training.model.visual_tokenizer import TokenizerConfig, VisualTokenizer
from belvedere_training.model.vit import VitTower
from training_subject import Subject

ROUNDS = 5
NAMES = ("checkpointing_bytes_saved", "blocked_attention_flop_ratio", "fsq_vs_vq_speed", "low_entropy_speed")


def rows(subject: Subject) -> list[Row]:
    """Measure each part on one thread."""
    torch.set_num_threads(1)
    return [*_recomputing(), *_blocked_attention(), *_tokenizers(), *_resolutions()]


def _recomputing() -> list[Row]:
    """Bytes that the forward pass of the base size's vision tower keeps for the backward pass."""
    config = sized("base").vision
    tower = VitTower(config).train()  # type: ignore[arg-type]
    weights = {parameter.untyped_storage().data_ptr() for parameter in tower.parameters()}
    pixels = torch.randn(4, 3, 224, 224)

    def kept(recompute: bool) -> int:
        tower.recompute = recompute
        seen: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                seen[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = tower.encode(pixels).pooled_BD
        assert out.requires_grad
        return sum(seen.values())

    plain, recomputed = kept(False), kept(True)
    extra = {"own_value": recomputed / 2**20, "peer": "without, MiB", "peer_value": plain / 2**20}
    note = "activations of ViT-B/16 at 224, batch 4, weights not counted; the backward pass adds those of one layer at a time"
    return [result("checkpointing_bytes_saved", 1 - recomputed / plain, "share", "higher", 0.6, note=note, **extra)]


def _blocked_attention() -> list[Row]:
    """Multiply-adds of the scores of text over a picture of 14 x 14 tokens, all keys against a quarter of them."""
    layer, image, text = CrossAttention(768, 12), torch.randn(1, 196, 768), torch.randn(1, 77, 768)
    counted = {}
    for attend in ("full", "pooled", "top"):
        keys = quartered(image, (14, 14), attend, text)
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            layer(text, keys)
        operations = counter.get_flop_counts()["Global"]
        counted[attend] = next(count for name, count in operations.items() if "bmm" in str(name))
    ratio = counted["full"] / counted["pooled"]
    assert counted["pooled"] == counted["top"]
    return [result("blocked_attention_flop_ratio", ratio, "x", "higher", 4.0, note="exactly H * W / 4 keys: 49 of 196")]


def _tokenizers() -> list[Row]:
    """Time from a picture to its tokens with FSQ of 16,384 codes against VQ of 8,192, the encoder being the same."""
    pixels = torch.randn(1, 3, 224, 224)
    models = {
        kind: VisualTokenizer(TokenizerConfig.model_validate({"quantiser": kind, "code_width": width})).eval()
        for kind, width in (("fsq", 5), ("vq", 64))
    }
    seconds: dict[str, list[float]] = {kind: [] for kind in models}
    with torch.inference_mode():
        for _ in range(3 * ROUNDS):
            for kind, model in models.items():
                start = time.process_time()
                model.tokens(pixels)
                seconds[kind].append(time.process_time() - start)
    ratios = [vq / fsq for fsq, vq in zip(seconds["fsq"], seconds["vq"], strict=True)][3:]
    own, other = (1000 * statistics.median(seconds[kind][3:]) for kind in ("fsq", "vq"))
    return [
        result(
            "fsq_vs_vq_speed",
            statistics.median(ratios),
            "x",
            "higher",
            1.0,
            own_value=own,
            peer="VQ, 8,192 codes 64 wide, ms a picture",
            peer_value=other,
            rounds=len(ratios),
            spread=[min(ratios), max(ratios)],
            note="picture to 196 tokens, encoder (4 layers, 256 wide) included, one thread, processor time",
        )
    ]


def _resolutions() -> list[Row]:
    """Time of a small vision transformer at the resolution of plain pictures against that of busy ones."""
    config = VitConfig(hidden_size=384, num_layers=12, num_heads=6)
    tower = VitTower(config).eval()
    seconds: dict[int, list[float]] = {size: [] for size in RESOLUTIONS}
    with torch.inference_mode():
        for _ in range(ROUNDS):
            for size, found in seconds.items():
                start = time.process_time()
                tower.encode(torch.zeros(1, 3, size, size))
                found.append(time.process_time() - start)
    small, middle, large = (1000 * statistics.median(found) for found in seconds.values())
    note = f"ViT-S/16 forward at 112, 160, 224: {small:.0f}, {middle:.0f}, {large:.0f} ms of processor time, one thread"
    return [
        result(
            "low_entropy_speed",
            large / small,
            "x",
            "higher",
            1.0,
            own_value=small,
            peer="at 224, ms",
            peer_value=large,
            rounds=ROUNDS,
            note=note,
        )
    ]
