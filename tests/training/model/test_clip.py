"""Weights in OpenCLIP's layout give what a CLIP written with torch's own attention gives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from belvedere_platform.errors import CorruptData
from belvedere_training.model.clip import from_open_clip

WIDTH, HEADS, PATCH, GRID, EMBED, LENGTH, WORDS = 16, 2, 8, 2, 12, 6, 300


class Block(nn.Module):
    """A residual attention block as CLIP has it, with the names of OpenCLIP."""

    def __init__(self) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attn = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(WIDTH, 4 * WIDTH), "c_proj": nn.Linear(4 * WIDTH, WIDTH)})

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp["c_proj"](functional.gelu(self.mlp["c_fc"](self.ln_2(x))))  # type: ignore[no-any-return]


class Reference(nn.Module):
    """The two towers."""

    def __init__(self) -> None:
        super().__init__()
        visual = nn.Module()
        visual.conv1 = nn.Conv2d(3, WIDTH, PATCH, PATCH, bias=False)
        visual.class_embedding = nn.Parameter(torch.randn(WIDTH))
        visual.positional_embedding = nn.Parameter(torch.randn(GRID**2 + 1, WIDTH))
        visual.ln_pre, visual.ln_post = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        visual.proj = nn.Parameter(torch.randn(WIDTH, EMBED))
        visual.transformer = nn.ModuleDict({"resblocks": nn.ModuleList(Block() for _ in range(2))})
        self.visual = visual
        self.transformer = nn.ModuleDict({"resblocks": nn.ModuleList(Block() for _ in range(1))})
        self.token_embedding = nn.Embedding(WORDS, WIDTH)
        self.positional_embedding = nn.Parameter(torch.randn(LENGTH, WIDTH))
        self.ln_final = nn.LayerNorm(WIDTH)
        self.text_projection = nn.Parameter(torch.randn(WIDTH, EMBED))
        self.logit_scale = nn.Parameter(torch.tensor(2.659))

    def image(self, pixels: Tensor) -> Tensor:
        v = self.visual
        x = v.conv1(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([v.class_embedding.expand(len(x), 1, -1), x], 1) + v.positional_embedding
        x = v.ln_pre(x)
        for block in v.transformer["resblocks"]:
            x = block(x, None)
        return functional.normalize(v.ln_post(x[:, 0]) @ v.proj, dim=-1)

    def text(self, tokens: Tensor) -> Tensor:
        x = self.token_embedding(tokens) + self.positional_embedding[: tokens.shape[1]]
        later = torch.full((tokens.shape[1],) * 2, float("-inf")).triu(1)
        for block in self.transformer["resblocks"]:
            x = block(x, later)
        x = self.ln_final(x)[torch.arange(len(x)), tokens.argmax(1)]
        return functional.normalize(x @ self.text_projection, dim=-1)


def test_both_towers_agree_also_without_the_padding() -> None:
    torch.manual_seed(0)
    reference = Reference().eval()
    model = from_open_clip(reference.state_dict(), vision_heads=HEADS, text_heads=HEADS)
    pixels = torch.randn(3, 3, GRID * PATCH, GRID * PATCH)
    tokens = torch.tensor([[1, 7, 299, 0, 0, 0], [1, 5, 8, 299, 0, 0], [1, 299, 0, 0, 0, 0]])
    with torch.no_grad():
        torch.testing.assert_close(model.embed_image(pixels), reference.image(pixels), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model.embed_text(tokens), reference.text(tokens), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model.embed_text(tokens[:, :4]), reference.text(tokens), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model.scale(), reference.logit_scale.exp())


def test_weights_of_another_kind_are_refused() -> None:
    weights = Reference().state_dict()
    with pytest.raises(CorruptData, match=r"there is no visual\.conv1\.weight"):
        from_open_clip({"a": torch.zeros(1)}, vision_heads=2, text_heads=2)
    with pytest.raises(CorruptData, match="another kind of CLIP"):
        from_open_clip({**weights, "transformer.resblocks.0.extra": torch.zeros(1)}, vision_heads=2, text_heads=2)
