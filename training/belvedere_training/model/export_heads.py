"""The heads that see both modalities as programs for serving: the picture once, then matching and words from its features."""

from __future__ import annotations

import io
import json

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.export import Dim, export

from belvedere_training.model.decoding import DecodeState, DecodeStep, EncodeImage, Match, decodes, geometry
from belvedere_training.model.dual import DualStream
from belvedere_training.model.tokenizer import END
from belvedere_training.model.vision_language import VisionLanguageModel

# B batch, N image tokens, T new tokens, P past tokens

HEADS = "heads.json"
_ROWS, _NEW, _PAST = (Dim(name, min=1, max=4096) for name in ("batch", "new", "past"))
Shapes = dict[str, dict[int, Dim]]


def export_heads(model: DualStream, tokenizer: Tokenizer) -> dict[str, bytes]:
    """Return the programs of the heads that mean something in this model and heads.json, or nothing for a dual one.

    encode_image.pt2: `pixels` [n, 3, S, S] → `features` [n, N, Dv]; match.pt2: `features`, `tokens` [n, L] → `score` [n].
    decode_state.pt2: `features` → `picture`; decode_step.pt2: see `DecodeStep`; only with a tokenizer that can end a text.
    """
    if not isinstance(model, VisionLanguageModel) or model.config.topology == "dual":
        return {}
    own = VisionLanguageModel(model.config).eval()
    own.load_state_dict({name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()})
    text, size = own.config.text, own.config.vision.image_size
    with torch.no_grad():
        pixels_B3SS = torch.zeros(2, 3, size, size)
        features_BND = EncodeImage(own)(pixels_B3SS)
        tokens_BT = torch.ones(2, text.max_length, dtype=torch.long)
        rows: Shapes = {"features": {0: _ROWS}}
        files = {
            "encode_image.pt2": _program(EncodeImage(_only(own, "vision")), (pixels_B3SS,), {"pixels": {0: _ROWS}}),
            "match.pt2": _program(
                Match(_only(own, "text", "fuser", "match_head")),
                (features_BND, tokens_BT),
                {**rows, "tokens": {0: _ROWS}},
            ),
        }
        described: dict[str, object] = {"features": list(features_BND.shape[1:]), "match": True}
        end = tokenizer.token_to_id(END)
        if end is not None and decodes(own.config):
            picture = DecodeState(own)(features_BND)
            files["decode_state.pt2"] = _program(DecodeState(_only(own, "fuser")), (features_BND,), rows)
            files["decode_step.pt2"] = _step(own, picture)
            start = tokenizer.encode("", add_special_tokens=True).ids[0]
            described["decoder"] = {
                **geometry(own.config),
                "picture": list(picture.shape[1:]),
                "startId": start,
                "endId": end,
            }
    return {**files, HEADS: json.dumps(described, indent=1).encode()}


def _step(model: VisionLanguageModel, picture: Tensor) -> bytes:
    kept = geometry(model.config)
    # Three new tokens after five: an exporter takes a size of 1 or 0 for a constant.
    example = (
        torch.full((2, 3), 2),
        torch.tensor([3, 2]),
        torch.tensor([5, 4]),
        torch.zeros(2, 5, kept["layers"], 2, kept["width"]),
        picture,
    )
    rows = {0: _ROWS}
    shapes: Shapes = {
        "tokens": {0: _ROWS, 1: _NEW},
        "counts": rows,
        "starts": rows,
        "past": {0: _ROWS, 1: _PAST},
        "picture": rows,
    }
    return _program(DecodeStep(_only(model, "text", "fuser", "language_head")), example, shapes)


def _only(model: VisionLanguageModel, *parts: str) -> VisionLanguageModel:
    """Return the model with these parts alone, so that each program carries only its own weights."""
    lean = object.__new__(VisionLanguageModel)
    lean.__dict__ = dict(model.__dict__)
    lean._modules = {name: child for name, child in model._modules.items() if name in parts}
    lean._parameters = {}
    return lean


def _program(module: nn.Module, example: tuple[Tensor, ...], shapes: Shapes) -> bytes:
    program = export(module.eval(), example, dynamic_shapes=shapes)
    out = io.BytesIO()
    torch.export.save(program, out)
    return out.getvalue()
