"""Tuning finds what is best within the objective, and its front holds what nothing beats."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from belvedere_platform.artifacts import ArtifactKind, ArtifactStore
from belvedere_platform.errors import InvalidInput
from belvedere_serving.client.load import bodies
from belvedere_serving.commands.engine import engine as engine_command
from belvedere_serving.engines.runtime import Variant
from belvedere_serving.tuning import tune as tuning_module
from belvedere_serving.tuning.report import plot, service_fragment
from belvedere_serving.tuning.search import Settings, Trial, best, front
from belvedere_serving.tuning.tune import Objective, Tuning, tune

SPACE = {
    "engine": ("sha256:fp32", "sha256:int8"),
    "max_batch_size": (1, 8, 32),
    "batch_wait_milliseconds": (0.0, 2.0, 5.0),
    "instances": (1,),
    "threads": (1, 2),
}


def a_trial(per_second: float, latency: float, **settings: object) -> Trial:
    made = Settings(**{"engine": "sha256:fp32", **settings})  # type: ignore[arg-type]
    return Trial(
        settings=made, clients=4, per_second=per_second, p50_milliseconds=latency / 2, latency_milliseconds=latency
    )


trials = st.builds(a_trial, st.floats(1, 1000), st.floats(1, 1000))


@given(st.lists(trials, min_size=1, max_size=30))
def test_nothing_beats_what_is_on_the_front_and_something_beats_the_rest(found: list[Trial]) -> None:
    kept = front(found)
    for trial in found:
        beaten = any(
            other.per_second >= trial.per_second and other.latency_milliseconds <= trial.latency_milliseconds
            for other in kept
        )
        assert beaten
    latencies = [one.latency_milliseconds for one in kept]
    assert latencies == sorted(latencies)
    assert [one.per_second for one in kept] == sorted(one.per_second for one in kept)


@given(st.lists(trials, max_size=30), st.floats(1, 1000))
def test_the_best_keeps_the_objective(found: list[Trial], objective: float) -> None:
    top = best(found, objective)
    within = [trial for trial in found if trial.latency_milliseconds <= objective]
    assert (top is None) == (not within)
    if top is not None:
        assert top.per_second == max(trial.per_second for trial in within)


def simulated(settings: Settings) -> list[Trial]:
    """A server whose best settings are known: int8, batch 8, no wait, two threads."""
    speed = 100.0 * (2 if "int8" in settings.engine else 1) * settings.threads
    speed -= 5 * abs(settings.max_batch_size - 8) + 10 * settings.batch_wait_milliseconds
    return [
        Trial(
            settings=settings,
            clients=clients,
            per_second=speed * min(1, clients / 4),
            p50_milliseconds=1000 * clients / speed,
            latency_milliseconds=1500 * clients / speed,
        )
        for clients in (1, 4, 16)
    ]


@pytest.fixture
def simulation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning_module, "measure", lambda start, settings, given, objective: simulated(settings))


@contextlib.contextmanager
def nothing(settings: Settings) -> Iterator[tuple[str, ...]]:
    yield ("",)


@pytest.mark.usefixtures("simulation")
def test_the_search_ends_at_the_best_settings_without_trying_all() -> None:
    found = tune(nothing, SPACE, [], Objective(milliseconds=100))
    assert found.chosen is not None
    assert found.chosen.settings == Settings(
        engine="sha256:int8", max_batch_size=8, batch_wait_milliseconds=0.0, instances=1, threads=2
    )
    assert len({trial.settings for trial in found.trials}) < 2 * 3 * 3 * 2


@pytest.mark.usefixtures("simulation")
def test_an_objective_that_nothing_meets_is_said() -> None:
    said: list[str] = []
    found = tune(nothing, SPACE, [], Objective(milliseconds=0.5), say=said.append)
    assert found.chosen is None
    assert "misses the objective" in said[0]


def test_the_lines_for_a_service_are_those_of_its_spec() -> None:
    from belvedere_platform.resources.model_service import ModelServiceSpec

    text = service_fragment(a_trial(100, 9, max_batch_size=8, threads=2), Variant("openvino", "int8"), "triton")
    spec = ModelServiceSpec.model_validate({"model": "m", "version": "v", **yaml.safe_load(text)["spec"]})
    assert (spec.backend, spec.engine.target.runtime, spec.batching.max_batch_size) == ("triton", "openvino", 8)


def test_a_plot_is_drawn(tmp_path: Path) -> None:
    tuning = Tuning(objective=Objective(milliseconds=5), trials=[a_trial(10, 1), a_trial(30, 6)])
    tuning.chosen = tuning.trials[0]
    plot(tuning, {"sha256:fp32": "onnxruntime fp32"}, tmp_path / "front.svg")
    assert (tmp_path / "front.svg").read_text().startswith("<?xml")


@pytest.fixture
def store_with_engine(tiny: ModuleType, tmp_path: Path) -> tuple[str, str]:
    """The URL of an artifact store, and the digest of the engine in it."""
    store = ArtifactStore((tmp_path / "artifacts").as_uri())
    files: dict[str, Path | bytes] = {path.name: path for path in tiny.write(tmp_path / "files").iterdir()}
    config = {"modelDigest": "sha256:" + "0" * 64, "target": {"precision": "fp32"}}
    return store.url, store.push(ArtifactKind.ENGINE, files, config=config).digest


@pytest.mark.slow
def test_the_command_tunes_the_real_server(
    store_with_engine: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BELVEDERE_CACHE", str(tmp_path / "cache"))
    url, digest = store_with_engine
    (tmp_path / "texts").write_text("red apple\nblue\n")
    words = ["tune", digest, "--latency-milliseconds", "5000", "--model", "embed_text", "--artifacts", url]
    words += ["--batch-sizes", "4", "--waits", "0", "--threads", "1", "--clients", "1,2", "--seconds", "0.3"]
    words += ["--instances", "1,2", "--inputs", str(tmp_path / "texts"), "--write", str(tmp_path / "service.yaml")]
    result = CliRunner().invoke(engine_command, words)
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    assert printed["chosen"]["per_second"] > 0
    assert {trial["clients"] for trial in printed["trials"]} == {1, 2}
    assert {trial["settings"]["instances"] for trial in printed["trials"]} == {1, 2}
    assert "maxBatchSize: 4" in (tmp_path / "service.yaml").read_text()


def test_replicas_are_shared_out_to_clients_and_stand_in_the_lines_for_a_service() -> None:
    spec = yaml.safe_load(service_fragment(a_trial(100, 9, instances=3), Variant("onnxruntime", "fp32"), "rayServe"))
    assert spec["spec"]["scaling"] == {"minReplicas": 3, "maxReplicas": 3, "targetInFlight": 2}
    assert spec["spec"]["resources"] == {"cpu": 1}


def test_instances_of_triton_share_one_replica() -> None:
    trial = a_trial(100, 9, instances=3, threads=2)
    spec = yaml.safe_load(service_fragment(trial, Variant("onnxruntime", "fp32"), "triton"))["spec"]
    assert (spec["scaling"], spec["server"], spec["resources"]) == ({"targetInFlight": 4}, {"instances": 3}, {"cpu": 6})


@pytest.mark.parametrize(
    ("option", "text", "words"),
    [
        ("--waits", "a,b", "--waits is 'a,b'; it must be numbers with commas between"),
        ("--threads", "1.5", "--threads is '1.5'; it must be whole numbers"),
        ("--batch-sizes", "8,0", "--batch-sizes has 0; each must be from 1 to 1024"),
        ("--instances", "65", "--instances has 65; each must be from 1 to 64"),
    ],
)
def test_a_wrong_number_is_named_before_anything_is_started(
    store_with_engine: tuple[str, str], option: str, text: str, words: str
) -> None:
    url, digest = store_with_engine
    told = ["tune", digest, "--latency-milliseconds", "50", "--artifacts", url, option, text]
    result = CliRunner().invoke(engine_command, told)
    assert isinstance(result.exception, InvalidInput)
    assert words in str(result.exception)


def test_a_request_is_for_one_model() -> None:
    assert bodies("embed_text", [b"x"])[0].path == "/v2/models/embed_text/infer"
