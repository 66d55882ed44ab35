"""Figures that tests measure on their way: each records them as a property, and this runs the tests and reads them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

from belvedere_platform.telemetry.benchmark import Row, result

ROOT = Path(__file__).parent.parent.parent
GATEWAY = ROOT / "tests" / "components" / "test_gateway"
TESTS = (GATEWAY / "test_edge.py", GATEWAY / "test_upgrade_under_load.py")
NUM_CHANGES = 20
PATIENCE_SECONDS = 400
FIGURES: Mapping[str, tuple[str, float | None, str]] = {
    "upgrade_pods_restarted": (
        "pods",
        0,
        "operator with another image and pod defaults, gateway started anew, under load",
    ),
    "upgrade_failed_requests": ("requests", 0, "of the same upgrade"),
    "config_change_to_traffic_p95_ms": ("ms", None, f"weights turned {2 * NUM_CHANGES + 2} times, under load"),
    "edge_reconnect_sync_ms": (
        "ms",
        None,
        "from the line's return to the first answer of the version asked for meanwhile",
    ),
}
"""By name: unit, target, and what it is of."""


def rows(kubeconfig: Path, folder: Path) -> list[Row]:
    """Run the tests on an API server and return a row for each figure; one that was not measured says why."""
    report = folder / "tests.xml"
    environment = {
        **os.environ,
        "BELVEDERE_TEST_KUBECONFIG": str(kubeconfig),
        "BELVEDERE_BENCH_CHANGES": str(NUM_CHANGES),
    }
    # Of pytest's two forms of report only the older one has properties of single tests.
    form = ("-o", "junit_family=xunit1", f"--junitxml={report}")
    words = [sys.executable, "-m", "pytest", "-q", *form, *map(str, TESTS)]
    with (folder / "tests.log").open("wb") as log:
        try:
            subprocess.run(words, cwd=ROOT, env=environment, stdout=log, stderr=log, timeout=PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            log.write(b"took too long\n")
    found = figures(report.read_text()) if report.exists() else {}
    return [_row(name, found) for name in FIGURES]


def figures(report: str) -> dict[str, float]:
    """Return the properties that tests recorded, from a JUnit report of tests that passed or failed."""
    tree = ElementTree.fromstring(report)
    return {one.attrib["name"]: float(one.attrib["value"]) for one in tree.iter("property")}


def _row(name: str, found: Mapping[str, float]) -> Row:
    unit, target, note = FIGURES[name]
    value = found.get(name)
    return result(name, value, unit, "lower", target, note=note if value is not None else "its test failed: tests.log")
