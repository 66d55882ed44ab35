"""What a run is told: what is read, what its digest is of, and what is answered to a wrong field."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from belvedere_platform.artifacts import ArtifactStore
from belvedere_platform.errors import InvalidInput, NotFound
from belvedere_platform.resources.training_data import Augmentation, TrainingData
from belvedere_training.config import RunConfig, read_config, resolve

Configure = Callable[..., RunConfig]

GOOD: dict[str, Any] = {
    "apiVersion": "belvedere.dev/v1alpha1",
    "kind": "TrainingRun",
    "metadata": {"name": "emoji-v1", "namespace": "lab"},
    "spec": {"model": "emoji", "data": {"dataset": "emoji"}, "optimization": {"pairs": 1000}},
}


def test_a_whole_training_run_is_read() -> None:
    config = read_config(json.dumps(GOOD), where="run.yaml")
    assert config.output_tag == "runs/lab/emoji-v1/1"
    assert config.version_name == "emoji-v1"


def test_the_digest_is_of_what_decides_the_outcome() -> None:
    config = read_config(json.dumps(GOOD), where="run.yaml")
    again = config.model_copy(update={"run": config.run.model_copy(update={"attempt": 2})})
    other = config.model_copy(update={"size": "small"})
    assert config.digest() == again.digest() != other.digest()
    assert config.identity == again.identity != other.identity


def test_a_run_goes_on_where_a_newer_release_fills_in_more_fields() -> None:
    filled = RunConfig.model_validate(read_config(json.dumps(GOOD), where="run.yaml").model_dump(by_alias=True))
    assert filled.digest() == read_config(json.dumps(GOOD), where="run.yaml").digest()
    colours = filled.model_copy(update={"data": TrainingData(dataset="emoji", augmentation=Augmentation(gray_share=0))})
    assert colours.digest() != filled.digest()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimisation": {"pairs": 5}}, "optimisation is not a known key; did you mean optimization?"),
        (
            {"optimization": {"pairs": 9, "learnRate": 1}},
            "optimization.learnRate is not a known key; did you mean learningRate?",
        ),
        ({"optimization": {"pairs": 0}}, "optimization.pairs is 0: input should be greater than or equal to 1"),
        ({"optimization": {"pairs": 100}}, "optimization.batchSize is 256, more than optimization.pairs, 100"),
        ({"data": {}}, "data.dataset is missing"),
    ],
)
def test_a_wrong_field_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read_config(json.dumps({**GOOD, "spec": {**GOOD["spec"], **change}}), where="run.yaml")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [", "is not YAML"), ("3", "must be a mapping"), ("kind: TrainingRun", "needs metadata.name")],
)
def test_a_file_that_is_no_configuration_is_refused(text: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        read_config(text, where="run.yaml")


def test_a_missing_parent_is_named(store: ArtifactStore, run_config: Configure) -> None:
    document = run_config().model_dump(by_alias=True) | {"initializeFrom": {"modelVersion": "v9"}}
    with pytest.raises(NotFound, match=r"initializeFrom\.modelVersion is 'v9'.*train that version first"):
        resolve(RunConfig.model_validate(document), store)


def test_the_example_uses_every_field_of_architecture_and_objectives() -> None:
    path = Path(__file__).parents[2] / "deploy" / "examples" / "training" / "fusion.yaml"
    config = read_config(path.read_text(), where=str(path))
    for part in (config.architecture, config.objectives):
        assert part.model_fields_set == set(type(part).model_fields)
