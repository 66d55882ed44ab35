"""Parity and timing are arithmetic: worked out by hand here."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from belvedere_platform.protocol import EMBED_IMAGE, EMBED_TEXT
from belvedere_platform.resources.engine import ParityGate, ParityReport
from belvedere_serving.engines import measure
from belvedere_serving.engines.device import Device, engine_tag, parse_cpuinfo

EYE = np.eye(3, dtype=np.float32)
SOURCE = measure.Source(texts_NE=EYE, images_NE=EYE)
vectors = hnp.arrays(np.float32, (5, 4), elements=st.floats(-10, 10, width=32))


def test_cosine_of_same_opposite_and_crossed() -> None:
    a = np.array([[1, 0], [0, 2], [1, 1]], np.float32)
    b = np.array([[3, 0], [0, -1], [1, -1]], np.float32)
    np.testing.assert_allclose(measure.cosines(a, b), [1, -1, 0], atol=1e-12)


@pytest.mark.parametrize("broken", [0.0, np.nan, np.inf])
def test_a_broken_vector_is_as_far_as_can_be(broken: float) -> None:
    assert measure.cosines(np.ones((1, 2), np.float32), np.full((1, 2), broken, np.float32)).tolist() == [-1.0]


@given(vectors, vectors)
def test_cosines_are_symmetric_and_bounded(a: np.ndarray, b: np.ndarray) -> None:
    values = measure.cosines(a, b)
    assert ((values >= -1) & (values <= 1)).all()
    np.testing.assert_array_equal(values, measure.cosines(b, a))


@pytest.mark.parametrize("tower", [EMBED_TEXT, EMBED_IMAGE])
def test_the_same_answers_agree_wholly(tower: str) -> None:
    report = measure.parity(tower, SOURCE, EYE.copy())
    assert report == ParityReport(cosine_min=1, cosine_mean=1, top1_agreement=1, samples=3)


@pytest.mark.parametrize("tower", [EMBED_TEXT, EMBED_IMAGE])
def test_two_exchanged_answers_lose_two_of_three_retrievals(tower: str) -> None:
    report = measure.parity(tower, SOURCE, EYE[[1, 0, 2]])
    assert report.top1_agreement == pytest.approx(1 / 3)
    assert report.cosine_min == 0


@pytest.mark.parametrize(
    ("cosine", "top1", "held"), [(0.98, 0.95, True), (0.9799, 0.95, False), (0.98, 0.9499, False), (1, 1, True)]
)
def test_the_gate_needs_both(cosine: float, top1: float, held: bool) -> None:
    report = ParityReport(cosine_min=cosine, cosine_mean=1, top1_agreement=top1, samples=9)
    assert measure.holds(report, ParityGate()) is held


def test_candidates_take_turns_and_the_first_round_is_not_counted() -> None:
    order: list[str] = []
    ticks = itertools.count()
    runs = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    taken = measure.milliseconds(runs, rounds=2, repeats=3, clock=lambda: next(ticks) / 1000)
    assert "".join(order) == "aaabbb" * 3
    assert {name: values.tolist() for name, values in taken.items()} == {
        name: pytest.approx([1.0] * 6) for name in "ab"
    }


@pytest.mark.parametrize(("turn_seconds", "repeats"), [(0.001, 20), (0.1, 7), (5.0, 2)])
def test_a_slow_model_runs_less_often(turn_seconds: float, repeats: int) -> None:
    ticks = iter([0.0, turn_seconds])
    runs = {"a": lambda: None, "b": lambda: None}
    found = measure.affordable_repeats(runs, rounds=7, repeats=20, seconds=6.0, clock=lambda: next(ticks))
    assert found == repeats


def test_the_curve_ends_with_a_batch_that_takes_too_long() -> None:
    class Slow:
        now = 0.0

        def run(self, model_name: str, arrays: Mapping[str, Any]) -> dict[str, Any]:
            self.now += 0.1 * len(arrays["pixels"])
            return {}

    slow = Slow()
    points = measure.curve(slow, EMBED_IMAGE, np.zeros((2, 3, 4, 4)), clock=lambda: slow.now, seconds_each=0.25)
    assert [point.batch for point in points] == [1, 2, 4]
    assert [round(point.per_second) for point in points] == [10, 10, 10]


def test_a_processor_is_read_with_what_matters_to_integers() -> None:
    device = parse_cpuinfo(
        "model name : Some CPU @ 2GHz\nflags : fpu avx2 avx512_vnni\n\nmodel name : other\n", "x86_64"
    )
    assert str(device) == "cpu: Some CPU @ 2GHz (avx2, avx512_vnni)"
    assert device.has_vnni
    assert parse_cpuinfo("Features : asimddp\n", "aarch64") == Device("aarch64", ("asimddp",))
    assert not parse_cpuinfo("", "riscv64").has_vnni


def test_another_device_or_library_is_another_engine() -> None:
    digest, tools = "sha256:" + "ab" * 32, {"onnx": "1"}
    tag = engine_tag(digest, "onnxruntime", "int8", tools, Device("x", ()))
    assert tag.startswith("engines/abababababab-onnxruntime-int8-")
    others = [
        engine_tag(digest, "onnxruntime", "int8", tools, Device("x", ("avx2",))),
        engine_tag(digest, "onnxruntime", "int8", {"onnx": "2"}, Device("x", ())),
        engine_tag(digest, "onnxruntime", "fp32", tools, Device("x", ())),
    ]
    assert len({tag, *others}) == 4
