"""The generated repository against Triton's own schema, for each backend, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2 as pb

from belvedere_platform.errors import CorruptData, InvalidInput
from belvedere_platform.protocol import Reason, V2Error
from belvedere_serving.engines import lengths
from belvedere_serving.engines.loading import ENGINE_FILE, engine_json
from belvedere_serving.engines.runtime import OnnxRuntime, Variant
from belvedere_serving.triton.backend import run_apart, run_by_shape, triton_error
from belvedere_serving.triton.model_config import parse
from belvedere_serving.triton.options import RepositoryOptions, version_number
from belvedere_serving.triton.repository import write_repository
from belvedere_serving.triton.server import Installation, Launch, arguments, tracing_of


@pytest.fixture
def engine(tiny: ModuleType, tmp_path: Path) -> Path:
    return Path(tiny.write(tmp_path / "engine"))


def write(engine: Path, **changes: Any) -> dict[str, Any]:
    """Write a repository and return its configurations, read by Triton's schema."""
    target = engine.parent / "repository"
    write_repository(engine, target, RepositoryOptions(**{"version": "emoji-v3", **changes}))
    found = {path.parent.name: parse(path.read_text(), path) for path in sorted(target.glob("*/config.pbtxt"))}
    for name, config in found.items():
        assert config.name == name
        assert (target / name / "3").is_dir()
    return found


def test_a_v2_model_is_two_steps_that_fit_each_other(engine: Path, tiny: ModuleType) -> None:
    found = write(engine, max_batch_size=8)
    pipeline = found["embed_image"]
    assert pipeline.platform == "ensemble"
    assert [list(one.dims) for one in (*pipeline.input, *pipeline.output)] == [[-1], [-1, tiny.DIMENSION]]
    first, second = pipeline.ensemble_scheduling.step
    assert dict(first.output_map) == dict(second.input_map)
    prepared, engine_config = found[first.model_name], found[second.model_name]
    # The engine's model batches, so its shapes are those of one input; the other takes whole requests.
    assert list(prepared.output[0].dims) == [-1, *engine_config.input[0].dims]
    assert prepared.output[0].data_type == engine_config.input[0].data_type
    assert (prepared.max_batch_size, engine_config.max_batch_size) == (0, 32)


def test_the_engine_batches_warms_up_takes_turns_and_bounds_its_queue(engine: Path) -> None:
    options = {"max_batch_size": 8, "batch_wait_milliseconds": 1.5, "max_queued_requests": 99, "instances": 2}
    config = write(engine, **options, response_cache=True)["embed_text_engine"]
    batching = config.dynamic_batching
    assert (list(batching.preferred_batch_size), batching.max_queue_delay_microseconds) == ([8], 1500)
    assert batching.default_queue_policy.max_queue_size == 99
    assert batching.default_queue_policy.timeout_action == pb.ModelQueuePolicy.REJECT
    assert (config.instance_group[0].count, config.response_cache.enable) == (2, True)
    assert config.instance_group[0].rate_limiter.resources[0].name == "engine_lane"
    assert [sample.batch_size for sample in config.model_warmup] == [1, 8]


def test_texts_of_any_length_are_padded_to_a_few_and_each_is_warmed_up(
    engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OnnxRuntime, "flexible", lambda self, name: name == "embed_text")
    monkeypatch.setattr(lengths, "SHORTEST", 3)
    found = write(engine, max_batch_size=8)
    config = found["embed_text_engine"]
    assert (list(config.input[0].dims), config.input[0].allow_ragged_batch) == ([-1], True)
    assert list(found["embed_text_preprocess"].output[0].dims) == [-1, -1]
    warmed = [(one.batch_size, list(one.inputs["tokens"].dims)) for one in config.model_warmup]
    assert warmed == [(1, [3]), (8, [3]), (1, [6]), (8, [6])]
    files = {
        path.name: path.stat().st_size for path in (engine.parent / "repository/embed_text_engine/warmup").iterdir()
    }
    assert files == {"tokens_3": 3 * 8, "tokens_6": 6 * 8}
    assert found["embed_image_engine"].input[0].allow_ragged_batch is False


def test_what_prepares_is_warmed_up_with_a_real_input(engine: Path) -> None:
    found = write(engine)
    for tower, name in (("embed_text", "TEXT"), ("embed_image", "IMAGE")):
        (sample,) = found[f"{tower}_preprocess"].model_warmup
        assert (sample.batch_size, list(sample.inputs[name].dims)) == (1, [1])
        content = (engine.parent / "repository" / f"{tower}_preprocess" / "warmup" / name).read_bytes()
        assert int.from_bytes(content[:4], "little") == len(content) - 4


def test_a_warm_up_file_holds_one_input(engine: Path, tiny: ModuleType) -> None:
    write(engine)
    folder = engine.parent / "repository" / "embed_text_engine"
    tokens = np.frombuffer((folder / "warmup" / "tokens").read_bytes(), np.int64)
    assert (len(tokens), tokens[0]) == (tiny.CONTEXT, 1)


@pytest.mark.parametrize(
    ("backend", "file", "endings", "kind"),
    [
        ("onnxruntime", "model.onnx", [".onnx"], pb.ModelInstanceGroup.KIND_CPU),
        ("openvino", "model.xml", [".xml", ".bin"], pb.ModelInstanceGroup.KIND_CPU),
        ("tensorrt", "model.plan", [".plan"], pb.ModelInstanceGroup.KIND_GPU),
    ],
)
def test_a_backend_of_the_vendor_gets_its_file(
    engine: Path, backend: str, file: str, endings: list[str], kind: int
) -> None:
    for tower in ("embed_text", "embed_image"):
        for ending in endings:
            (engine / f"{tower}{ending}").touch()
    config = write(engine, backend=backend)["embed_text_engine"]
    assert (config.backend, config.default_model_filename, config.instance_group[0].kind) == (backend, file, kind)
    written = engine.parent / "repository" / "embed_text_engine" / "3"
    assert sorted(path.name for path in written.iterdir()) == sorted(f"model{ending}" for ending in endings)


def test_a_plan_is_laid_out_where_tensorrt_is_not_installed(engine: Path, tiny: ModuleType) -> None:
    runtime = OnnxRuntime({name: engine / f"{name}.onnx" for name in ("embed_text", "embed_image")})
    towers = dict.fromkeys(("embed_text", "embed_image"), runtime)
    (engine / ENGINE_FILE).write_bytes(engine_json(Variant("tensorrt", "fp16"), towers))
    for name in towers:
        (engine / f"{name}.onnx").rename(engine / f"{name}.plan")
    found = write(engine, backend="tensorrt")
    assert list(found["embed_image"].output[0].dims) == [-1, tiny.DIMENSION]
    assert found["embed_text_engine"].instance_group[0].kind == pb.ModelInstanceGroup.KIND_GPU


def test_an_engine_of_another_kind_is_refused(engine: Path) -> None:
    with pytest.raises(CorruptData, match=r"lacks embed_text\.plan.*tensorrt"):
        write(engine, backend="tensorrt")


def test_a_folder_in_use_is_left_alone(engine: Path) -> None:
    with pytest.raises(InvalidInput, match="not empty"):
        write_repository(engine, engine, RepositoryOptions(version="v1"))


def test_what_is_not_a_configuration_is_refused() -> None:
    with pytest.raises(CorruptData, match="is not a model configuration"):
        parse('name: "x"\nmax_batch: 3\n', Path("config.pbtxt"))


def test_spans_go_where_the_variables_of_opentelemetry_say(tmp_path: Path) -> None:
    def words(**environment: str) -> list[str]:
        launch = Launch(
            repository=tmp_path,
            http_port=1,
            grpc_port=2,
            metrics_port=3,
            tracing=tracing_of(environment, version="a-v1"),
        )
        installation = Installation(program=Path("tritonserver"), environment={})
        return [word for word in arguments(installation, launch) if word.startswith("--trace-config=opentelemetry")]

    resource = [
        f"--trace-config=opentelemetry,resource={one}"
        for one in ("service.name=belvedere-server", "belvedere.version=a-v1")
    ]
    assert words() == []
    assert words(OTEL_EXPORTER_OTLP_ENDPOINT="http://a:4318/") == [
        "--trace-config=opentelemetry,url=http://a:4318/v1/traces",
        *resource,
    ]
    told = {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://b/t", "OTEL_BSP_SCHEDULE_DELAY": "50"}
    assert words(OTEL_EXPORTER_OTLP_ENDPOINT="http://a", **told) == [
        "--trace-config=opentelemetry,url=http://b/t",
        *resource,
        "--trace-config=opentelemetry,bsp_schedule_delay=50",
    ]


@given(st.integers(1, 999_999_999))
def test_a_numbered_version_keeps_its_number(number: int) -> None:
    assert version_number(f"emoji-v{number}") == number


@given(st.from_regex(r"[a-z]([-a-z0-9]{0,40}[a-z0-9])?", fullmatch=True))
def test_any_version_has_a_positive_number_that_fits(version: str) -> None:
    assert 0 < version_number(version) < 1 << 63


@given(st.lists(st.integers(0, 9), min_size=1, max_size=8))
def test_only_the_request_at_fault_fails(values: list[int]) -> None:
    def run(rows: Any) -> Any:
        if (rows == 3).any():
            raise ValueError("three")
        return np.where(rows == 5, np.nan, rows)

    outcomes = run_apart(run, [np.array([value, 1], float) for value in values])
    for value, outcome in zip(values, outcomes, strict=True):
        if value in (3, 5):
            assert isinstance(outcome, Exception)
        else:
            np.testing.assert_array_equal(np.asarray(outcome), [value, 1])


@given(st.lists(st.integers(1, 4), min_size=1, max_size=8))
def test_arrays_of_one_shape_are_run_together_and_answered_in_order(widths: list[int]) -> None:
    shapes: list[tuple[int, ...]] = []

    def run(rows: Any) -> Any:
        shapes.append(rows.shape)
        return rows.sum(1, keepdims=True)

    outcomes = run_by_shape(run, [np.ones((2, width)) for width in widths])
    assert [np.asarray(outcome).tolist() for outcome in outcomes] == [[[width]] * 2 for width in widths]
    assert sorted(shape[1] for shape in shapes) == sorted(set(widths))


def test_an_error_keeps_its_kind() -> None:
    class Backend:
        class TritonError(Exception):
            INVALID_ARG, INTERNAL = 1, 2

            def __init__(self, message: str, code: int) -> None:
                self.told = (message, code)

    assert triton_error(Backend, V2Error(Reason.INVALID_ARGUMENT, "no")).told == ("no", 1)
    assert triton_error(Backend, V2Error(Reason.DEADLINE_EXCEEDED, "late")).told == ("late", 2)
