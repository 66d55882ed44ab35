"""The whole model: two towers, the blocks that fuse them, and a head for each objective.

The weights do not depend on the topology: a checkpoint of one loads as any other.
"""

from __future__ import annotations

from torch import Tensor, nn

from belvedere_platform.errors import InvalidInput
from belvedere_training.model.config import ModelConfig, Topology, VitConfig
from belvedere_training.model.disentangling import Disentangler
from belvedere_training.model.dual import DualStream
from belvedere_training.model.fusion import Fused, Fuser
from belvedere_training.model.heads import LanguageHead, PixelDecoder
from belvedere_training.model.text import TextTower
from belvedere_training.model.tower import Encoded
from belvedere_training.model.vit import VitTower

# B pairs, T text tokens, D width, V vocabulary, S picture edge


class VisionLanguageModel(DualStream):
    """The dual-stream encoder, and above it what the configuration asks for. Without fusion layers it is just that."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        width = config.text.hidden_size
        if config.fusion.num_layers:
            self.fuser = Fuser(config, self.vision.token_width)
            self.match_head = nn.Linear(width, 1 if config.fusion.itm_head == "bce" else 2)
            self.language_head = LanguageHead(width, config.text.vocab_size)
        if config.pixels.num_layers:
            assert isinstance(config.vision, VitConfig)
            self.pixel_decoder = PixelDecoder(config.pixels, self.vision.token_width, config.vision.patch_size)
        if config.parts.attributes:
            counts = {name: len(values) for name, values in config.parts.attributes.items()}
            self.disentangler = Disentangler(config.embed_dim, config.parts.width, counts, config.parts.gradient_limit)

    def fuse(self, pixels_B3SS: Tensor, tokens_BT: Tensor, *, causal: bool = False) -> Fused:
        """Return both modalities after fusion; causal where the text is to be continued."""
        return self.fuse_encoded(self.vision.encode(pixels_B3SS), self.text.encode(tokens_BT, causal), causal=causal)

    def fuse_encoded(
        self, image: Encoded, text: Encoded, *, causal: bool = False, wanted_BA: Tensor | None = None
    ) -> Fused:
        """Return the same from what the towers made, several texts of a picture together; of texts the places wanted, or all."""
        if not self.config.fusion.num_layers:
            raise InvalidInput(
                "fusion.numLayers is 0: this model has no blocks that see both modalities; "
                "use a topology of fusion, unified or hybrid with fusion.numLayers of 1 or more"
            )
        fused: Fused = self.fuser(image, text, causal=causal, wanted_BA=wanted_BA)
        return fused

    def match(self, image: Encoded, text: Encoded) -> Tensor:
        """Return a logit for each pair: of the head where modalities meet, of the embeddings (late fusion) where not."""
        if self.config.topology == "dual":
            return self.scale() * (self.project_image(image) * self.project_text(text)).sum(-1)
        return self.match_logits(self.fuse_encoded(image, text).joint_BD)

    def match_logits(self, joint_BD: Tensor) -> Tensor:
        """Return the logit that a pair belongs together; the two-class head answers with their difference."""
        logits_BK: Tensor = self.match_head(joint_BD).float()
        return logits_BK[:, 0] if logits_BK.shape[1] == 1 else logits_BK[:, 1] - logits_BK[:, 0]

    def words(self, text_BTD: Tensor) -> Tensor:
        """Return logits over the vocabulary for fused text tokens."""
        logits_BTV: Tensor = self.language_head(text_BTD, self.text.embedding.weight)
        return logits_BTV

    def recompute_activations(self, on: bool = True) -> None:
        """Keep only each transformer layer's input for the backward pass; convolutions keep all, for their batch norm."""
        for module in self.modules():
            if isinstance(module, (TextTower, VitTower, Fuser)):
                module.recompute = on


def with_topology(model: VisionLanguageModel, topology: Topology) -> VisionLanguageModel:
    """Return a model with the same weights in which the modalities see each other otherwise."""
    config = ModelConfig.model_validate({**dict(model.config), "topology": topology})
    other = VisionLanguageModel(config)
    other.load_state_dict(model.state_dict())
    return other.train(model.training)
