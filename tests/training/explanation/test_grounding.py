"""A map points at what a model looks at, whatever tower the model has, and the game counts how often that is right."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor

from belvedere_platform.artifacts import ArtifactKind, ArtifactStore
from belvedere_platform.errors import InvalidInput
from belvedere_training.commands.ground import ground as command
from belvedere_training.data.corpus import Corpus, corpus_texts
from belvedere_training.explanation.grounding import ground, pointing_game
from belvedere_training.explanation.score import pair_of
from belvedere_training.model.config import ModelConfig, ResNetConfig, VitConfig
from belvedere_training.model.files import LoadedModel, save
from belvedere_training.model.tokenizer import learn
from belvedere_training.model.vision_language import VisionLanguageModel

TOWERS = {
    "conv": None,
    "vit": VitConfig(image_size=64, patch_size=16, hidden_size=16, num_layers=2, num_heads=2),
    "class token": VitConfig(image_size=64, patch_size=16, hidden_size=16, num_layers=2, num_heads=2, pooling="class"),
    "resnet": ResNetConfig(image_size=64, layers=(1, 1), output_dim=16),
}


@pytest.fixture(scope="module")
def tokenizer(shapes: Corpus) -> Tokenizer:
    return learn(corpus_texts(shapes), 400, 12)


def loaded(config: ModelConfig, tokenizer: Tokenizer) -> LoadedModel:
    text = config.text.model_copy(update={"vocab_size": tokenizer.get_vocab_size()})
    torch.manual_seed(0)
    return LoadedModel(model=VisionLanguageModel(config.model_copy(update={"text": text})).eval(), tokenizer=tokenizer)


@pytest.mark.parametrize("tower", TOWERS)
def test_every_tower_is_asked_at_its_last_grid(
    tower: str, tiny_config: ModelConfig, tokenizer: Tokenizer, shapes: Corpus
) -> None:
    vision = TOWERS[tower]
    one = loaded(tiny_config if vision is None else tiny_config.model_copy(update={"vision": vision}), tokenizer)
    pair = pair_of(one.model, tokenizer, shapes.pixels([0])[0], "red circle")
    with torch.no_grad():  # as callers that only look at a model have it
        found = ground(one.model, pair)
    assert found.ndim == 2
    assert found.shape[0] == found.shape[1] > 1
    assert (found >= 0).all()
    assert all(parameter.grad is None for parameter in one.model.parameters())


PAINTS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "black": (0, 0, 0)}


class Colours(torch.nn.Module):
    """A tower that sees, place by place, how much there is of each paint."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))

    def forward(self, pixels: Tensor) -> Tensor:
        coarse = torch.nn.functional.avg_pool2d(pixels, 16)
        others = torch.stack([coarse[:, [1, 2]].amax(1), coarse[:, [0, 2]].amax(1), coarse[:, [0, 1]].amax(1)], 1)
        return self.scale * torch.cat([coarse - others, -coarse.amax(1, keepdim=True)], 1).relu()


def test_the_game_is_won_by_who_sees_what_is_named(
    tiny_config: ModelConfig, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = loaded(tiny_config, tokenizer)
    one.model.vision.stages = Colours()
    names = [tokenizer.encode(name).ids[1] for name in PAINTS]
    monkeypatch.setattr(one.model, "embed_image", lambda pixels: one.model.vision.stages(pixels).mean((2, 3)))
    with torch.no_grad():
        one.model.text.embedding.weight.zero_()
        one.model.text.embedding.weight[names, range(len(names))] = 1.0
    monkeypatch.setattr(one.model.text, "encode_embedded", lambda embedded, valid: embedded.sum(1))
    monkeypatch.setattr(one.model, "project_text", lambda words: words[:, : len(names)])
    pictures = [torch.tensor(paint, dtype=torch.uint8)[:, None, None].expand(3, 64, 64) for paint in PAINTS.values()]
    right = pointing_game(one, list(zip(pictures, PAINTS, strict=True)), games=20)
    assert (right.hit_rate, right.inside) == (1.0, pytest.approx(1.0))
    wrong = pointing_game(one, list(zip([*pictures[1:], pictures[0]], PAINTS, strict=True)), games=20)
    assert (wrong.hit_rate, wrong.inside) == (0.0, pytest.approx(0.0))


def test_fewer_than_four_pictures_make_no_game(tiny_config: ModelConfig, tokenizer: Tokenizer, shapes: Corpus) -> None:
    with pytest.raises(InvalidInput, match="lays 4 pictures out, and there are 3: take more with --count"):
        pointing_game(loaded(tiny_config, tokenizer), [(shapes.pixels([0])[0], "red circle")] * 3, games=1)


def test_the_command_draws_a_map_and_plays(
    tiny_config: ModelConfig, tokenizer: Tokenizer, store: ArtifactStore, tmp_path: Path, shapes: Corpus
) -> None:
    one = loaded(tiny_config, tokenizer)
    store.push(ArtifactKind.MODEL, dict(save(one.model, tokenizer, tmp_path)), config={}, tag="models/tiny")
    Image.fromarray(shapes.pixels([0])[0].permute(1, 2, 0).numpy()).save(tmp_path / "one.png")
    asked = ["models/tiny", "--image", str(tmp_path / "one.png"), "--text", "red circle", "--artifacts", store.url]
    drawn = CliRunner().invoke(command, [*asked, "--report", str(tmp_path / "out")])
    assert drawn.exit_code == 0, drawn.output
    assert drawn.stdout.startswith("red circle: ")
    assert (tmp_path / "out" / "ground.png").read_bytes().startswith(b"\x89PNG")
    played = CliRunner().invoke(
        command, ["models/tiny", "--data", "shapes", "--games", "5", "-o", "json", "--artifacts", store.url]
    )
    assert played.exit_code == 0, played.output
    assert json.loads(played.stdout)["games"] == 5
