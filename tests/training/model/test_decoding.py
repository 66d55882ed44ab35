"""The decoder in steps says what the whole model says, and its programs are exported with what a server must know."""

from __future__ import annotations

import io
import json

import pytest
import torch

from belvedere_training.evaluation.fusing import next_words
from belvedere_training.model.config import FusionConfig, ModelConfig, TextConfig, Topology, VitConfig
from belvedere_training.model.decoding import DecodeState, DecodeStep, EncodeImage, Match, decodes, geometry
from belvedere_training.model.export_heads import export_heads
from belvedere_training.model.text import PAD_ID
from belvedere_training.model.tokenizer import learn
from belvedere_training.model.vision_language import VisionLanguageModel

WRITING: list[tuple[Topology, str]] = [
    ("fusion", "full"),
    ("fusion", "pooled"),
    ("unified", "full"),
    ("unified", "pooled"),
    ("hybrid", "full"),
]


def small(topology: Topology, attend: str = "full") -> VisionLanguageModel:
    torch.manual_seed(0)
    config = ModelConfig(
        topology=topology,
        embed_dim=16,
        vision=VitConfig(image_size=32, patch_size=8, hidden_size=24, num_layers=1, num_heads=2),
        text=TextConfig(vocab_size=400, hidden_size=16, num_layers=1, num_heads=2, max_length=12),
        fusion=FusionConfig.model_validate({"num_layers": 2, "num_heads": 2, "attend": attend}),
    )
    return VisionLanguageModel(config).eval()


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
@pytest.mark.parametrize(("topology", "attend"), WRITING)
def test_steps_say_what_the_whole_says(topology: Topology, attend: str, pixels: torch.Tensor) -> None:
    model = small(topology, attend)
    tokens_BT = torch.randint(2, 400, (2, 9), generator=torch.Generator().manual_seed(2))
    whole_BTV = next_words(model, pixels, tokens_BT)
    picture = DecodeState(model)(EncodeImage(model)(pixels))
    step, kept = DecodeStep(model), geometry(model.config)
    # The rows are at different places: the first has begun with five tokens, the second with three and padding behind them.
    first_BT = tokens_BT[:, :5].clone()
    first_BT[1, 3:] = PAD_ID
    counts_B = torch.tensor([5, 3])
    nothing = torch.zeros(2, 1, kept["layers"], 2, kept["width"])
    logits_BV, fresh = step(first_BT, counts_B, torch.zeros(2, dtype=torch.long), nothing, picture)
    torch.testing.assert_close(logits_BV, whole_BTV[[0, 1], counts_B - 1], atol=1e-5, rtol=1e-5)
    past = torch.full((2, 12, kept["layers"], 2, kept["width"]), 7.0)  # what is behind a row's end is anything
    past[:, :5] = fresh
    for _ in range(4):
        next_B1 = tokens_BT[torch.arange(2), counts_B][:, None]
        logits_BV, fresh = step(next_B1, torch.ones(2, dtype=torch.long), counts_B, past, picture)
        torch.testing.assert_close(logits_BV, whole_BTV[[0, 1], counts_B], atol=1e-5, rtol=1e-5)
        past[torch.arange(2), counts_B] = fresh[:, 0]
        counts_B += 1


def test_who_can_write() -> None:
    assert all(decodes(small(topology, attend).config) for topology, attend in WRITING)
    assert not decodes(small("dual").config)
    assert not decodes(small("fusion", "top").config)
    assert not decodes(small("hybrid", "pooled").config)


@torch.inference_mode()
def test_the_exported_programs_say_the_same(pixels: torch.Tensor) -> None:
    tokenizer = learn(["a red circle", "blue"], 320, 12, generative=True)
    model = small("fusion")
    files = export_heads(model, tokenizer)
    programs = {
        name: torch.export.load(io.BytesIO(files[f"{name}.pt2"])).module() for name in ("encode_image", "match")
    }
    features = programs["encode_image"](pixels)
    tokens_BT = torch.tensor([[1, 5, 9] + [PAD_ID] * 9] * 2)
    torch.testing.assert_close(programs["match"](features, tokens_BT), Match(model)(features, tokens_BT))
    described = json.loads(files["heads.json"])
    assert described["features"] == [16, 24]
    decoder = described["decoder"]
    assert decoder["picture"] == [16, 2, 2, 16]
    assert tokenizer.id_to_token(decoder["endId"]) == "<end>"
    assert tokenizer.id_to_token(decoder["startId"]) == "<start>"
    state, step = (torch.export.load(io.BytesIO(files[f"decode_{name}.pt2"])).module() for name in ("state", "step"))
    for rows, new, past in ((1, 1, 1), (2, 1, 7), (1, 4, 2)):
        given = (
            torch.full((rows, new), 5),
            torch.full((rows,), new),
            torch.zeros(rows, dtype=torch.long),
            torch.zeros(rows, past, decoder["layers"], 2, decoder["width"]),
            state(features[:rows]),
        )
        for got, expected in zip(step(*given), DecodeStep(model)(*given), strict=True):
            torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_a_model_exports_only_the_heads_it_has() -> None:
    plain = learn(["a red circle"], 300, 12)
    assert export_heads(small("dual"), plain) == {}
    # A text without an end would never stop.
    files = export_heads(small("fusion"), plain)
    assert sorted(files) == ["encode_image.pt2", "heads.json", "match.pt2"]
    assert "decoder" not in json.loads(files["heads.json"])
