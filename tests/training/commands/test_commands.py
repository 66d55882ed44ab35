"""What `belvedere train` and `belvedere data` say before any work starts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from belvedere_platform.errors import BelvedereError, InvalidInput, NotFound
from belvedere_training.commands.data import data
from belvedere_training.commands.train import train

RUN = {
    "kind": "TrainingRun",
    "metadata": {"name": "emoji-v1"},
    "spec": {"model": "emoji", "data": {"dataset": "emoji"}, "optimization": {"pairs": 1000}},
}


def error_of(command: object, arguments: list[str]) -> BelvedereError:
    result = CliRunner().invoke(command, arguments)  # type: ignore[arg-type]
    assert isinstance(result.exception, BelvedereError), result.output
    return result.exception


def test_exactly_one_configuration_is_asked_for() -> None:
    error = error_of(train, [])
    assert isinstance(error, InvalidInput)
    assert "exactly one of --config FILE and --config-env VAR" in str(error)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert isinstance(error_of(train, ["--config", str(tmp_path / "none.yaml")]), NotFound)


def test_an_unset_variable_is_named() -> None:
    assert "--config-env NO_SUCH_VARIABLE" in str(error_of(train, ["--config-env", "NO_SUCH_VARIABLE"]))


def test_a_missing_data_set_is_told_before_any_worker_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIAL", json.dumps(RUN))
    error = error_of(train, ["--config-env", "TRIAL", "--artifacts", (tmp_path / "artifacts").as_uri()])
    assert isinstance(error, NotFound)
    assert "belvedere data build emoji" in str(error)


def test_a_wrong_size_of_pictures_is_refused() -> None:
    assert "--size is 4; allowed are 16 to 512 pixels" in str(error_of(data, ["build", "emoji", "--size", "4"]))


def test_the_shapes_are_built_without_a_network(tmp_path: Path) -> None:
    url = (tmp_path / "artifacts").as_uri()
    result = CliRunner().invoke(data, ["build", "shapes", "--artifacts", url])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["tag"] == "datasets/shapes"
