"""What the training benchmark looks at: the emoji set, and a model of it, trained first or given."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from click.testing import CliRunner

from belvedere_platform.artifacts import ArtifactStore
from belvedere_platform.errors import NotFound
from belvedere_training.commands.data import data
from belvedere_training.config import RunConfig
from belvedere_training.data.corpus import pull_dataset, resolve_dataset
from belvedere_training.data.styles import STYLES
from belvedere_training.model.files import LoadedModel, load_artifact
from belvedere_training.recipe import train
from belvedere_training.world import LocalWorld

CONCEPTS = "emoji-concepts"
UNSEEN_BY_THE_BASELINE = ("fluent-hc",)


@dataclass(frozen=True)
class Subject:
    """The artifact store with the set and the model; each is made when it is first needed."""

    folder: Path
    store: ArtifactStore
    given: str | None
    pairs: int
    teacher: str | None = None

    @cached_property
    def data(self) -> Path:
        """Return the folder of the emoji set."""
        try:
            digest = resolve_dataset(self.store, "emoji")
        except NotFound:
            CliRunner().invoke(data, ["build", "emoji", "--artifacts", self.store.url], catch_exceptions=False)
            digest = resolve_dataset(self.store, "emoji")
        return pull_dataset(self.store, digest)

    @cached_property
    def concepts(self) -> Path:
        """Return the folder of the emoji set with single concepts held out and without a style: what the baseline was tried on."""
        styles = ",".join(name for name in STYLES if name not in UNSEEN_BY_THE_BASELINE)
        build = ["build", "emoji", "--styles", styles, "--held-out", "concepts", "--output-tag", f"datasets/{CONCEPTS}"]
        CliRunner().invoke(data, [*build, "--artifacts", self.store.url], catch_exceptions=False)
        return pull_dataset(self.store, resolve_dataset(self.store, CONCEPTS))

    @cached_property
    def model(self) -> LoadedModel:
        """Return the model that is looked at."""
        return load_artifact(self.store, self.reference)

    @cached_property
    def reference(self) -> str:
        """Return its tag; trained with the quickstart's settings and a smaller budget when none was given."""
        if self.given is not None:
            return self.given
        assert self.data.is_dir()
        config = run_config("bench", pairs=self.pairs)
        train(config, self.store, LocalWorld())
        return config.output_tag


def run_config(name: str, *, pairs: int, size: str = "nano", dataset: str = "emoji", **changes: object) -> RunConfig:
    """Return the configuration of a run of the benchmark; `changes` are those of the optimization."""
    optimization = {"pairs": pairs, "batchSize": 128, "learningRate": 0.001, "warmupPairs": 3000, **changes}
    document = {
        "model": name,
        "size": size,
        "data": {"dataset": dataset},
        "optimization": optimization,
        "run": {"name": name},
        "evaluation": {"everyPairs": 10**9},
    }
    return RunConfig.model_validate(document)


def prepared(folder: Path, artifacts: str | None, model: str | None, pairs: int, teacher: str | None = None) -> Subject:
    """Return the subject; without an artifact store one is made in the folder."""
    store = ArtifactStore(artifacts or (folder / "artifacts").as_uri())
    return Subject(folder=folder, store=store, given=model, pairs=pairs, teacher=teacher)
