"""The rows of the benchmark of a cluster: each figure that its tests note has one, and one that is not there says so."""

from __future__ import annotations

from cluster_bench import AUTOSCALER, FAULTS, rows


def test_what_was_not_measured_has_a_row_that_says_why() -> None:
    made = rows({}, "its test did not come to it")
    assert len(made) == 2 + len(AUTOSCALER) + 3 * len(FAULTS)
    assert {row["value"] for row in made} == {None}
    assert {row["met"] for row in made} == {None}
    assert {row["note"] for row in made} == {"its test did not come to it"}


def test_a_failed_request_misses_the_target_and_seconds_have_none() -> None:
    figures = {
        "drain_failed_requests": {"value": 2, "note": "of 100"},
        "drain_recovery_seconds": {"value": 51.5, "note": ""},
    }
    by_name = {row["name"]: row for row in rows(figures, "missing")}
    failed, recovery = by_name["drain_failed_requests"], by_name["drain_recovery_seconds"]
    assert (failed["value"], failed["unit"], failed["met"]) == (2, "requests", False)
    assert (recovery["value"], recovery["unit"], recovery["met"]) == (51.5, "s", None)
