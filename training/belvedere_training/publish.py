"""Publish a trained model as an artifact: weights, tokenizer, exported towers, parity inputs, curves, examples."""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from belvedere_platform.artifacts import ArtifactKind, ArtifactStore, Descriptor
from belvedere_training.data.corpus import Corpus
from belvedere_training.model.dual import DualStream, multiply_adds
from belvedere_training.model.export import export_towers, preprocessing
from belvedere_training.model.export_heads import export_heads
from belvedere_training.model.files import save

NUM_PARITY_PAIRS = 256
NUM_EXAMPLES = 12


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """Everything the weights were made from."""

    training_run: str | None = None
    data_digest: str | None = None
    config_digest: str | None = None
    parent_digest: str | None = None

    def document(self) -> dict[str, str]:
        """Return the known entries as they are written in the artifact's configuration."""
        entries = {
            "trainingRun": self.training_run,
            "dataDigest": self.data_digest,
            "configDigest": self.config_digest,
            "parentDigest": self.parent_digest,
        }
        return {name: value for name, value in entries.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Publication:
    """What is known of the model beside its weights."""

    model_name: str
    version: str
    pairs: int = 0
    images_per_second: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict)
    curves: Mapping[str, Any] = field(default_factory=dict)
    lineage: Lineage = Lineage()
    derivation: str | None = None


def publish(
    store: ArtifactStore,
    model: DualStream,
    tokenizer: Tokenizer,
    evidence: Mapping[str, bytes],
    publication: Publication,
    *,
    tag: str | None,
) -> Descriptor:
    """Push the model artifact and return its descriptor. `evidence` holds parity.jsonl and the examples."""
    with tempfile.TemporaryDirectory(prefix="belvedere-publish-") as folder:
        files: dict[str, Path | bytes] = {**save(model, tokenizer, Path(folder))}
        files |= export_towers(model)
        files |= export_heads(model, tokenizer)
        files["preprocess.json"] = json.dumps(preprocessing(model.config), indent=1).encode()
        files["curves.json"] = json.dumps(publication.curves).encode()
        files |= evidence
        return store.push(ArtifactKind.MODEL, files, config=_config(model, publication), tag=tag)


def _config(model: DualStream, publication: Publication) -> dict[str, Any]:
    derived = {} if publication.derivation is None else {"derivation": publication.derivation}
    return {
        **derived,
        "model": publication.model_name,
        "version": publication.version,
        "metrics": dict(publication.metrics),
        "lineage": publication.lineage.document(),
        "imagesPerSecond": round(publication.images_per_second, 1),
        "pairs": publication.pairs,
        "multiplyAdds": multiply_adds(model),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


def spread(count: int, wanted: int) -> list[int]:
    """Return up to `wanted` positions, evenly spread over `count`."""
    wanted = min(wanted, count)
    return [number * count // wanted for number in range(wanted)]


def parity_lines(held_out: Corpus, count: int = NUM_PARITY_PAIRS) -> bytes:
    """Return held-out inputs, a text and a picture for each id, languages in turn: what engines are compared on."""
    lines = []
    for number, position in enumerate(spread(len(held_out), count)):
        record = held_out.records[position]
        languages = sorted(record["captions"])
        text = record["captions"][languages[number % len(languages)]]
        lines.append({"id": record["id"], "text": text})
        lines.append({"id": record["id"], "image": base64.b64encode(held_out.png(position)).decode()})
    return _json_lines(lines)


def _json_lines(lines: Sequence[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()


def evidence_of(held_out: Corpus) -> dict[str, bytes]:
    """Return the files that show what the model is compared on."""
    return {"parity.jsonl": parity_lines(held_out), **examples(held_out)}


def examples(held_out: Corpus) -> dict[str, bytes]:
    """Return a few held-out pictures with their captions, for contact sheets and first requests."""
    files: dict[str, bytes] = {}
    lines = []
    for position in spread(len(held_out), NUM_EXAMPLES):
        record = held_out.records[position]
        name = f"{record['id'].lower()}.png"
        files[f"examples/{name}"] = held_out.png(position)
        lines.append({"file": name, "captions": record["captions"]})
    files["examples/captions.jsonl"] = _json_lines(lines)
    return files
