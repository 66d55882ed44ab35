"""What `belvedere train` and `belvedere data` say before any work starts."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from PIL import Image

from belvedere_platform.artifacts import ArtifactStore
from belvedere_platform.errors import BelvedereError, CorruptData, InvalidInput, NotFound
from belvedere_training.commands.data import data
from belvedere_training.commands.train import train
from belvedere_training.config import read_config
from belvedere_training.driver import elastic_workers, start_ray, train_on_ray

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


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_bytes(b"\xff")
    error = error_of(train, ["--config", str(tmp_path / "run.json")])
    assert isinstance(error, InvalidInput)
    assert "run.json is not a text file" in str(error)


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


def pictures(folder: Path, count: int = 12) -> Path:
    """Write small pictures with a caption beside each."""
    folder.mkdir()
    for number in range(count):
        Image.new("RGB", (8, 8), (20 * number, 0, 0)).save(folder / f"p{number}.png")
        (folder / f"p{number}.txt").write_text(f"picture {number}")
    return folder


def test_a_folder_is_built_shown_and_verified(tmp_path: Path) -> None:
    artifacts = ["--artifacts", (tmp_path / "artifacts").as_uri()]
    source = str(pictures(tmp_path / "pictures"))
    words = ["build", "folder", source, "--name", "mine", "--licence", "CC0-1.0", "--size", "16", *artifacts]
    first, second = CliRunner().invoke(data, words), CliRunner().invoke(data, words)
    assert first.exit_code == 0, first.output
    answer = json.loads(first.stdout)
    assert sum(answer["samples"].values()) == 12
    assert json.loads(second.stdout)["digest"] == answer["digest"]
    assert "built before from the same files" in second.stderr
    shown = CliRunner().invoke(data, ["show", "mine", "-o", "json", *artifacts])
    assert json.loads(shown.stdout)["licences"] == ["CC0-1.0"]
    verified = CliRunner().invoke(data, ["verify", "mine", *artifacts])
    assert verified.exit_code == 0, verified.output
    assert "mine is whole: 12 samples" in verified.stdout


def test_an_interrupted_build_says_that_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("belvedere_training.data.assemble.sample_of", interrupted)
    words = ["build", "folder", str(pictures(tmp_path / "pictures")), "--name", "mine", "--licence", "CC0-1.0"]
    result = CliRunner().invoke(data, [*words, "--artifacts", (tmp_path / "artifacts").as_uri()])
    assert result.exit_code != 0
    assert "the same command goes on from there" in result.stderr


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--held-out", "1.5"], "--held-out is 1.5"),
        (["--size", "8"], "--size is 8; allowed are 16 to 512 pixels"),
        # It is part of the name of a folder in the cache.
        (["--name", "../../elsewhere"], "--name is '../../elsewhere'"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_read(tmp_path: Path, option: list[str], message: str) -> None:
    words = ["build", "folder", str(tmp_path / "none"), "--name", "mine", "--licence", "CC0-1.0", *option]
    assert message in str(error_of(data, words))


def elastic(batch: int, least: int, most: int) -> int | tuple[int, int]:
    spec = {**RUN["spec"], "optimization": {"pairs": 1000, "batchSize": batch}, "workers": {"min": least, "max": most}}  # type: ignore[dict-item]
    return elastic_workers(read_config(json.dumps({**RUN, "spec": spec}), where="test"))


def test_workers_are_elastic_between_their_bounds() -> None:
    assert elastic(128, 2, 2) == 2
    assert elastic(128, 1, 2) == (1, 2)


def test_a_batch_that_some_number_of_workers_cannot_share_is_refused() -> None:
    with pytest.raises(
        InvalidInput, match=r"batchSize is 128, and 3 of workers.min 1 to workers.max 4 .*multiple of 12"
    ):
        elastic(128, 1, 4)


def test_what_a_worker_recorded_is_told_and_not_what_became_of_the_others(
    store: ArtifactStore, run_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Trainer:
        def __init__(self, config: Any, url: str, workers: Any, error_file: str) -> None:
            self.error_file = Path(error_file)

        def fit(self) -> None:
            self.error_file.parent.mkdir(parents=True, exist_ok=True)
            self.error_file.write_text(json.dumps({"message": "no space left in /data", "exit_code": 7}))
            raise RuntimeError("a collective timed out")

    monkeypatch.setenv("BELVEDERE_CHECKPOINTS", str(tmp_path / "checkpoints"))
    monkeypatch.setattr("belvedere_training.driver._trainer", Trainer)
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    with pytest.raises(CorruptData, match="no space left in /data"):
        train_on_ray(run_config(), store.url, 1)


@pytest.mark.parametrize(
    ("failures", "tries", "raises"),
    [
        ([], 1, False),
        (["The current node timed out during startup."] * 2, 3, False),
        (["The current node timed out during startup."] * 9, 4, True),
        (["no such address"], 1, True),
    ],
)
def test_a_node_of_ray_that_was_not_up_in_time_is_started_anew(failures: list[str], tries: int, raises: bool) -> None:
    made = []

    def start() -> None:
        made.append(1)
        if len(made) <= len(failures):
            raise Exception(failures[len(made) - 1])

    with pytest.raises(Exception, match=failures[0]) if raises else nullcontext():
        start_ray(start)
    assert len(made) == tries
