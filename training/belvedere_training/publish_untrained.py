"""Publish a model with random weights: everything but knowledge, for trying out what comes after training.

`python -m belvedere_training.publish_untrained --artifacts URL --tag TAG`
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import click
import torch

from belvedere_platform.artifacts import ArtifactStore, Descriptor
from belvedere_training.data.corpus import corpus_texts, load_split
from belvedere_training.data.shapes import build_shapes
from belvedere_training.model.config import sized
from belvedere_training.model.tokenizer import learn
from belvedere_training.model.vision_language import VisionLanguageModel
from belvedere_training.publish import Publication, evidence_of, publish


def untrained_model_artifact(store: ArtifactStore, tag: str, *, size: str = "nano", seed: int = 0) -> Descriptor:
    """Push an untrained model that knows the words and pictures of the drawn shapes."""
    config = sized(size)
    with tempfile.TemporaryDirectory(prefix="belvedere-shapes-") as folder:
        shapes = build_shapes(Path(folder) / "shapes")
        train, held_out = load_split(shapes, "train"), load_split(shapes, "heldout_style")
        tokenizer = learn(corpus_texts(train), config.text.vocab_size, config.text.max_length)
        evidence = evidence_of(held_out)
    vocabulary = config.text.model_copy(update={"vocab_size": tokenizer.get_vocab_size()})
    torch.manual_seed(seed)
    model = VisionLanguageModel(config.model_copy(update={"text": vocabulary})).eval()
    publication = Publication(model_name="untrained", version=f"untrained-{seed}")
    return publish(store, model, tokenizer, evidence, publication, tag=tag)


@click.command()
@click.option("--artifacts", required=True, help="URL of the artifact store")
@click.option("--tag", required=True, help="tag of the model artifact")
@click.option("--seed", default=0, show_default=True, help="seed of the random weights")
def main(artifacts: str, tag: str, seed: int) -> None:
    """Publish a model with random weights."""
    click.echo(untrained_model_artifact(ArtifactStore(artifacts), tag, seed=seed).digest)


if __name__ == "__main__":
    main()
