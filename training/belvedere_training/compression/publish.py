"""Publish a compressed model as an artifact, with what it was made of in its lineage."""

from __future__ import annotations

from belvedere_platform.artifacts import ArtifactStore, Descriptor
from belvedere_training.compression.measure import Measured
from belvedere_training.model.dual import DualStream
from belvedere_training.model.files import load_artifact
from belvedere_training.publish import Lineage, Publication, publish


def publish_compressed(
    store: ArtifactStore, source: str, model: DualStream, measured: Measured, tag: str
) -> Descriptor:
    """Push the model under the tag; parity inputs and examples are those of the original."""
    config = store.config(source)
    descriptor = store.resolve(source)
    kept = [entry.name for entry in descriptor.files if "/" in entry.name or entry.name == "parity.jsonl"]
    publication = Publication(
        model_name=config["model"],
        version=tag.rsplit("/", 1)[-1],
        metrics=measured.recall,
        lineage=Lineage(parent_digest=descriptor.digest, data_digest=config.get("lineage", {}).get("dataDigest")),
        derivation=f"compressed: {measured.name}",
    )
    tokenizer = load_artifact(store, source).tokenizer
    return publish(store, model, tokenizer, {name: store.read(source, name) for name in kept}, publication, tag=tag)
