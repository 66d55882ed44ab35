"""Fusion: who sees whom in each topology, what the gate does, and that no token sees what comes after it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from belvedere_platform.errors import InvalidInput
from belvedere_training.model.attention import CrossAttention, at
from belvedere_training.model.blocked import quartered
from belvedere_training.model.config import FusionConfig, ModelConfig, PixelConfig, TextConfig, Topology, VitConfig
from belvedere_training.model.fusion import FusionBlock, Gate, prefix_mask
from belvedere_training.model.patches import pack
from belvedere_training.model.text import PAD_ID
from belvedere_training.model.vision_language import VisionLanguageModel, with_topology

ACROSS: list[Topology] = ["fusion", "unified", "hybrid"]


def small(topology: Topology = "fusion", **fusion: object) -> VisionLanguageModel:
    torch.manual_seed(0)
    config = ModelConfig(
        topology=topology,
        embed_dim=16,
        vision=VitConfig(image_size=32, patch_size=8, hidden_size=24, num_layers=1, num_heads=2),
        text=TextConfig(vocab_size=400, hidden_size=16, num_layers=1, num_heads=2, max_length=12),
        fusion=FusionConfig.model_validate({"num_layers": 2, "num_heads": 2, **fusion}),
        pixels=PixelConfig(num_layers=1, hidden_size=16, num_heads=2),
    )
    return VisionLanguageModel(config).eval()


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.tensor([[1, 5, 9, 7], [1, 6, 2, PAD_ID], [1, 8, PAD_ID, PAD_ID]])


@pytest.mark.parametrize("topology", ACROSS)
def test_the_joint_vector_and_the_match_depend_on_both_inputs(
    topology: Topology, pixels: torch.Tensor, tokens: torch.Tensor
) -> None:
    model = small(topology)
    score = model.match(model.vision.encode(pixels), model.text.encode(tokens))
    assert score.shape == (3,)
    assert not torch.allclose(score, model.match(model.vision.encode(pixels.flip(0)), model.text.encode(tokens)))
    assert not torch.allclose(score, model.match(model.vision.encode(pixels), model.text.encode(tokens.flip(0))))


def test_in_the_dual_topology_no_stream_sees_the_other(pixels: torch.Tensor, tokens: torch.Tensor) -> None:
    model = small("dual")
    fused = model.fuse(pixels, tokens)
    assert torch.equal(model.fuse(pixels.flip(0), tokens).text_BTD, fused.text_BTD)
    assert torch.equal(model.fuse(pixels, tokens.flip(0)).image_BND, fused.image_BND)
    image, text = model.vision.encode(pixels), model.text.encode(tokens)
    cosine = (model.project_image(image) * model.project_text(text)).sum(-1)
    torch.testing.assert_close(model.match(image, text), model.scale() * cosine)


@pytest.mark.parametrize("topology", ["dual", *ACROSS])
def test_one_checkpoint_serves_every_topology(topology: Topology, pixels: torch.Tensor, tokens: torch.Tensor) -> None:
    origin = small("fusion")
    model = with_topology(origin, topology)
    assert model.state_dict().keys() == origin.state_dict().keys()
    assert torch.equal(model.embed_image(pixels), origin.embed_image(pixels))
    assert model.fuse(pixels, tokens).text_BTD.shape == (3, 4, 16)


def test_closed_gates_make_fusion_the_dual_topology(pixels: torch.Tensor, tokens: torch.Tensor) -> None:
    model = small("fusion")
    for block in model.fuser.blocks:
        assert isinstance(block, FusionBlock)
        nn.init.zeros_(block.gate.linear.weight)
        nn.init.constant_(block.gate.linear.bias, -1e4)
    closed, dual = model.fuse(pixels, tokens), with_topology(model, "dual").fuse(pixels, tokens)
    assert torch.equal(closed.text_BTD, dual.text_BTD)
    assert torch.equal(closed.image_BND, dual.image_BND)


def test_the_gate_learns_to_close_on_noise_and_to_open_on_what_informs() -> None:
    """Channel 0 is to be told; a picture that knows it says so in channel 1, and noise is noise everywhere else."""
    torch.manual_seed(0)
    attention, gate = CrossAttention(4, 2), Gate(4)
    optimizer = torch.optim.AdamW([*attention.parameters(), *gate.parameters()], lr=3e-2)

    def pictures(knows: float) -> torch.Tensor:
        return torch.randn(64, 1, 4) * torch.tensor([2.0, 0.0, 1.0, 1.0]) + knows * torch.tensor([0.0, 2.0, 0.0, 0.0])

    def look(picture: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found = attention(torch.zeros(64, 1, 4), picture)
        return found[..., 0], gate(found)[..., 0]

    for _ in range(120):
        informative, noise = pictures(1.0), pictures(-1.0)
        (told, opened), (heard, closed) = look(informative), look(noise)
        loss = (opened * told - informative[..., 0]).square().mean() + (closed * heard).square().mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    opened, closed = look(pictures(1.0))[1], look(pictures(-1.0))[1]
    assert 0 < closed.mean() < 0.3 < 0.7 < opened.mean() < 1


@pytest.mark.parametrize("topology", ["dual", *ACROSS])
def test_a_causal_token_sees_nothing_that_comes_after_it(topology: Topology, pixels: torch.Tensor) -> None:
    model = small(topology)
    tokens = torch.randint(3, 400, (3, 8))
    out = model.fuse(pixels, tokens, causal=True)
    for cut in (1, 4, 7):
        changed = tokens.clone()
        changed[:, cut:] = torch.randint(3, 400, changed[:, cut:].shape)
        again = model.fuse(pixels, changed, causal=True)
        torch.testing.assert_close(again.text_BTD[:, :cut], out.text_BTD[:, :cut], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(again.image_BND, out.image_BND, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("attend", ["full", "pooled", "top"])
@pytest.mark.parametrize("topology", ["dual", *ACROSS])
@pytest.mark.parametrize("causal", [True, False])
def test_several_texts_of_a_picture_are_fused_as_if_each_were_alone(
    topology: Topology, attend: str, causal: bool, pixels: torch.Tensor
) -> None:
    model = small(topology, attend=attend)
    tokens = torch.randint(3, 400, (6, 8), generator=torch.Generator().manual_seed(2))
    tokens[3, 5:] = PAD_ID
    places = torch.tensor([[1, 7], [0, 2], [3, 3], [2, 4], [5, 1], [6, 0]])
    text = model.text.encode(tokens, causal)
    several = model.fuse_encoded(model.vision.encode(pixels), text, causal=causal, wanted_BA=places)
    alone = model.fuse(pixels.repeat_interleave(2, 0), tokens, causal=causal)
    torch.testing.assert_close(several.text_BTD, at(alone.text_BTD, places), rtol=1e-4, atol=1e-5)


def test_the_prefix_mask_is_causal_on_text_only() -> None:
    assert prefix_mask(2, 3).int().tolist() == [
        [1, 1, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 1, 1, 1],
    ]


@pytest.mark.parametrize("topology", ["dual", *ACROSS])
def test_padding_changes_no_answer(topology: Topology, pixels: torch.Tensor, tokens: torch.Tensor) -> None:
    model = small(topology)
    padded = nn.functional.pad(tokens, (0, 5), value=PAD_ID)
    torch.testing.assert_close(
        model.fuse(pixels, padded).joint_BD, model.fuse(pixels, tokens).joint_BD, rtol=1e-4, atol=1e-5
    )


def test_pictures_of_several_sizes_can_be_fused(tokens: torch.Tensor) -> None:
    model = small("fusion")
    pictures = [torch.randn(3, 32, 32), torch.randn(3, 16, 16), torch.randn(3, 16, 32)]
    image = model.vision.encode(pack(pictures, 8))
    joint = model.fuse_encoded(image, model.text.encode(tokens)).joint_BD
    alone = model.fuse(pictures[1][None], tokens[1:2]).joint_BD
    torch.testing.assert_close(joint[1:2], alone, rtol=1e-4, atol=1e-5)


def test_cross_attention_is_scaled_and_its_rows_sum_to_one() -> None:
    layer = CrossAttention(8, 2)
    x, context = torch.randn(1, 3, 8), torch.randn(1, 5, 8)
    query, (key, value) = layer.query(x), layer.key_value(context).chunk(2, -1)
    mixed = []
    for head in (slice(0, 4), slice(4, 8)):
        weight = torch.softmax(query[..., head] @ key[..., head].transpose(1, 2) / 4**0.5, -1)
        torch.testing.assert_close(weight.sum(-1), torch.ones(1, 3))
        mixed.append(weight @ value[..., head])
    torch.testing.assert_close(layer(x, context), layer.out(torch.cat(mixed, -1)))


@pytest.mark.parametrize("attend", ["pooled", "top"])
@pytest.mark.parametrize("grid", [(4, 4), (10, 10), (14, 14)])
def test_blocked_attention_has_exactly_a_quarter_of_the_keys_and_of_the_score_operations(
    attend: str, grid: tuple[int, int]
) -> None:
    image, text = torch.randn(2, grid[0] * grid[1], 16), torch.randn(2, 5, 16)
    keys = {kind: quartered(image, grid, kind, text) for kind in ("full", attend)}  # type: ignore[arg-type]
    assert keys[attend].shape[1] * 4 == grid[0] * grid[1]
    counted = {}
    for kind, key in keys.items():
        with FlopCounterMode(display=False) as counter:
            text @ key.transpose(1, 2)
        counted[kind] = counter.get_total_flops()
    assert counted["full"] == 4 * counted[attend]


def test_whole_blocks_are_chosen_by_their_agreement_with_the_text() -> None:
    image = torch.zeros(1, 16, 4)
    image[0, [10, 11, 14, 15]] = 5.0  # the last block of a 4x4 grid
    kept = quartered(image, (4, 4), "top", torch.ones(1, 2, 4))
    assert kept.shape == (1, 4, 4)
    assert bool((kept > 0).all())


@pytest.mark.parametrize("attend", ["pooled", "top"])
def test_blocked_models_learn_through_every_weight(attend: str, pixels: torch.Tensor, tokens: torch.Tensor) -> None:
    model = small("fusion", attend=attend)
    model.fuse(pixels, tokens).joint_BD.square().sum().backward()  # type: ignore[no-untyped-call]
    for block in model.fuser.blocks:
        assert isinstance(block, FusionBlock)
        assert block.cross_attention.key_value.weight.grad is not None


def test_blocked_attention_says_which_resolutions_it_needs() -> None:
    with pytest.raises(ValueError, match=r"this picture has 7x7 tokens: use fusion\.attend full"):
        quartered(torch.zeros(1, 49, 4), (7, 7), "pooled", torch.zeros(1, 1, 4))


def test_a_model_without_fusion_layers_says_so(tiny: ModelConfig) -> None:
    with pytest.raises(InvalidInput, match="this model has no blocks that see both modalities"):
        VisionLanguageModel(tiny).fuse(torch.zeros(1, 3, 64, 64), torch.ones(1, 4, dtype=torch.long))


def test_one_norm_serves_both_modalities_and_the_bridge_takes_any_width() -> None:
    model = small()
    assert sum(isinstance(module, nn.LayerNorm) for module in model.fuser.children()) == 1
    assert (model.fuser.bridge.in_features, model.fuser.bridge.out_features) == (24, 16)


@pytest.mark.parametrize("topology", ACROSS)
def test_recomputing_activations_changes_no_gradient(
    topology: Topology, pixels: torch.Tensor, tokens: torch.Tensor
) -> None:
    model = small(topology).train()
    gradients = []
    for on in (False, True):
        model.recompute_activations(on)
        model.zero_grad()
        model.fuse(pixels, tokens).joint_BD.square().sum().backward()  # type: ignore[no-untyped-call]
        gradients.append(model.fuser.bridge.weight.grad.clone())  # type: ignore[union-attr]
    torch.testing.assert_close(*gradients)
