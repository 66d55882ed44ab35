"""What the demo concludes from what it saw."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from belvedere_platform.telemetry.benchmark import result
from benchmark import demo_results
from clearing import is_a_demos
from report import lineage_svg
from story import nested_metrics
from timeline import Timeline, requests_between, seconds_between
from traffic import Request, requests


def test_metrics_are_nested_by_split_and_language() -> None:
    flat = {"heldout_style_en_r1": 0.4, "heldout_style_en_i2t_r1": 0.3, "hard_style_zh_r10": 0.2, "loss": 1.5}
    assert nested_metrics(flat) == {
        "heldout_style": {"en": {"r1": 0.4, "i2t_r1": 0.3}},
        "hard_style": {"zh": {"r10": 0.2}},
        "loss": 1.5,
    }


@pytest.mark.parametrize(
    ("value", "better", "target", "met"),
    [
        (0.5, "higher", 0.4, True),
        (0.3, "higher", 0.4, False),
        (10.0, "lower", 60.0, True),
        (61.0, "lower", 60.0, False),
        (None, "lower", 60.0, None),
        (1.0, "higher", None, None),
    ],
)
def test_met_follows_from_value_and_target(
    value: float | None, better: str, target: float | None, met: bool | None
) -> None:
    assert result("x", value, "s", better, target)["met"] is met


def test_a_candidate_that_was_not_reverted_has_no_seconds_to_revert() -> None:
    metrics = {"heldout_style": {"en": {"r1": 0.5, "r5": 0.7}, "zh": {"r5": 0.6}}}
    rollout = {
        "client_errors_outside_candidate": 0,
        "client_requests": 10,
        "seconds_to_decision": 5.0,
        "first_signal": "judge:errors",
    }
    report = {
        "versions": [{"metrics": metrics, "images_per_second": 600.0}],
        "engines": [
            {"precision": "int8", "model": "embed_image", "cosine_min": 0.99, "p50_ms": 1.0, "torch_p50_ms": 3.0}
        ],
        "rollouts": [
            rollout | {"fault": None, "outcome": "Promoted"},
            rollout | {"fault": "failing", "outcome": "Aborted"},
            rollout | {"fault": "slow", "outcome": "Promoted"},
            rollout | {"fault": "wrong", "outcome": "Aborted"},
        ],
        "scaling_clients": {"errors": 0, "requests": 100},
        "seconds": 500.0,
        "rss_control_plane_mib": 150.0,
    }
    rows = {row["name"]: row for row in demo_results(report)}
    assert rows["failing_candidate_seconds_to_revert"]["value"] == 5.0
    assert rows["slow_candidate_seconds_to_revert"]["value"] is None
    assert "not reverted" in rows["slow_candidate_seconds_to_revert"]["note"]
    assert rows["int8_speedup"]["value"] == pytest.approx(3.0)
    assert rows["client_errors_outside_candidate"]["met"] is True


def _service(decisions: list[dict[str, Any]]) -> dict[str, Any]:
    return {"status": {"decisions": decisions, "candidate": {"version": "v2", "desiredWeight": 10}}}


def test_decisions_outlive_the_twenty_that_status_keeps() -> None:
    timeline = Timeline(store=None, name="emoji")  # type: ignore[arg-type]  # observe() takes no store
    first = {"time": "2026-01-01T00:00:01Z", "decision": "SetWeight", "reason": "step 1", "candidate": "v2"}
    second = {"time": "2026-01-01T00:00:09Z", "decision": "Promote", "reason": "proven", "candidate": "v2"}
    timeline.observe(_service([first]))
    timeline.observe(_service([second]))
    timeline.observe(_service([second]))
    assert timeline.decided("v2") == [first, second]
    assert timeline.samples[0]["weight"] == 10


def test_seconds_between_two_times() -> None:
    assert seconds_between("2026-01-01T00:00:01Z", "2026-01-01T00:01:31.500000Z") == 90.5


def test_a_half_written_last_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    path.write_text('{"time": 1.0}\n{"time": 2.0}\n{"time": 3.0')
    assert requests_between(path, 1.5, 9.0) == [{"time": 2.0}]


def test_traffic_mixes_both_protocols_languages_and_models(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_text(json.dumps({"en": "apple", "zh": "苹果", "png": "00ff"}) + "\n")
    source = requests(path)
    drawn = [next(source) for _ in range(200)]
    assert {(r.model, r.protocol) for r in drawn} == {
        (m, p) for m in ("embed_text", "embed_image") for p in ("grpc", "http")
    }
    assert {r.value for r in drawn} == {b"apple", "苹果".encode(), b"\x00\xff"}
    assert drawn[0] == Request(model=drawn[0].model, value=drawn[0].value, protocol="grpc")


def test_lineage_is_drawn_left_to_right() -> None:
    svg = lineage_svg(
        {
            "nodes": [
                {"id": "d", "kind": "Dataset", "name": "emoji"},
                {"id": "v", "kind": "ModelVersion", "name": "<v1>"},
            ],
            "edges": [{"from": "d", "to": "v"}],
        }
    )
    assert svg.startswith("<svg")
    assert "&lt;v1&gt;" in svg
    assert "x='20'" in svg
    assert "x='250'" in svg


def test_a_folder_that_no_demo_made_is_not_cleared(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    assert is_a_demos(tmp_path)
    (tmp_path / "home" / "thesis.tex").touch()
    assert not is_a_demos(tmp_path)
    (tmp_path / "home" / "installation.json").touch()
    assert is_a_demos(tmp_path)
