"""The figures that a JUnit report brings."""

from __future__ import annotations

from measured_in_tests import FIGURES, TESTS, figures


def test_what_tests_record_is_read_whether_they_passed_or_not() -> None:
    properties = '<properties><property name="a" value="1.5" /></properties>'
    report = f'<testsuites><testsuite><testcase name="t">{properties}<failure /></testcase></testsuite></testsuites>'
    assert figures(report) == {"a": 1.5}
    assert figures("<testsuites />") == {}


def test_every_figure_is_recorded_by_one_of_the_tests() -> None:
    text = "".join(path.read_text() for path in TESTS)
    assert all(f'record_property("{name}"' in text for name in FIGURES)
