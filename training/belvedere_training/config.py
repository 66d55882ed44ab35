"""What a run is told: the spec of a TrainingRun, who it is, and the digests of its inputs."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import yaml
from pydantic import Field

from belvedere_platform.artifacts import ArtifactNotFound, ArtifactStore
from belvedere_platform.errors import InvalidInput, NotFound
from belvedere_platform.resources.base import Digest, Name, Part
from belvedere_platform.resources.training_run import TrainingRunSpec
from belvedere_training.data.corpus import resolve_dataset
from belvedere_training.validation import parse

STATE_FORMAT = 2
"""What a checkpoint holds. 2: the optimizers keep single numbers apart (FSDP2)."""


class RunIdentity(Part):
    """Which TrainingRun this is an attempt of."""

    namespace: Name = "default"
    name: Name
    uid: str = "local"
    attempt: int = Field(default=1, ge=1)


class RunConfig(TrainingRunSpec):
    """A TrainingRun's spec with its names resolved."""

    run: RunIdentity
    data_digest: Digest | None = None
    parent_digest: Digest | None = None

    @property
    def version_name(self) -> str:
        """Return the name of the version that is published."""
        return self.version or self.run.name

    @property
    def output_tag(self) -> str:
        """Return the tag of the model artifact of this attempt."""
        return f"runs/{self.run.namespace}/{self.run.name}/{self.run.attempt}"

    @property
    def identity(self) -> str:
        """Return a name for the folder of checkpoints: the same for all attempts of one TrainingRun, for no other.

        Nor for a run of the same name that was told something else: its checkpoints would lie before one's own, unreadable.
        """
        return f"{self.run.namespace}-{self.run.name}-{self.run.uid[:8]}-{self.digest().removeprefix('sha256:')[:8]}"

    def digest(self) -> str:
        """Return the digest of what decides the outcome: everything but who runs it, where, and on how many workers.

        What has its default is left out, so that a run goes on where a newer release knows more fields; what a checkpoint holds is part
        of it, so that a run begins anew where a release holds it otherwise.
        """
        document = self.model_dump(
            mode="json",
            by_alias=True,
            exclude={"run", "workers", "suspend", "resume", "queue", "pod"},
            exclude_defaults=True,
        )
        text = json.dumps([STATE_FORMAT, document], sort_keys=True)
        return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def read_config(text: str, *, where: str) -> RunConfig:
    """Return the configuration from YAML or JSON: a run's configuration, or a whole TrainingRun."""
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InvalidInput(f"{where} is not YAML: {error}") from error
    if not isinstance(document, dict):
        raise InvalidInput(f"{where} must be a mapping with the fields of a TrainingRun's spec, got {document!r:.60}")
    if document.get("kind") == "TrainingRun":
        document = _from_resource(document, where)
    config = parse(RunConfig, document, where=where)
    if config.optimization.batch_size > config.optimization.pairs:
        raise InvalidInput(
            f"{where}: optimization.batchSize is {config.optimization.batch_size}, more than optimization.pairs, "
            f"{config.optimization.pairs}: no step could be made"
        )
    return config


def _from_resource(document: dict[str, Any], where: str) -> dict[str, Any]:
    metadata = document.get("metadata") or {}
    if not isinstance(document.get("spec"), dict) or "name" not in metadata:
        raise InvalidInput(f"{where}: a TrainingRun needs metadata.name and spec")
    run = {"name": metadata["name"], "namespace": metadata.get("namespace", "default")}
    return {**document["spec"], "run": {**run, "uid": metadata.get("uid", "local")}}


def resolve(config: RunConfig, store: ArtifactStore) -> RunConfig:
    """Return the configuration with digests for data set and parent; NotFound says what to make first."""
    data_digest = config.data_digest or resolve_dataset(store, config.data.dataset)
    parent_digest = config.parent_digest
    if config.initialize_from and parent_digest is None:
        tag = f"models/{config.initialize_from.model_version}"
        try:
            parent_digest = store.resolve(tag).digest
        except ArtifactNotFound as error:
            raise NotFound(
                f"initializeFrom.modelVersion is {config.initialize_from.model_version!r}, and {store.url} has no {tag}: "
                "train that version first, or name one that exists"
            ) from error
    return config.model_copy(update={"data_digest": data_digest, "parent_digest": parent_digest})
