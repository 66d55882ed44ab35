"""What all tests share: skips for what this machine lacks, and the closing table of what ran and what did not."""

from __future__ import annotations

import os
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import hypothesis
import pytest

from control_plane_process import control_plane_or_skip

# A test is slow or fast by its own merit, never because a numerical library spread over cores that other tests use.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")


# cel-python sets this when it is first used. Whichever of hypothesis' tests that was in failed, of a limit that changed under it.
sys.setrecursionlimit(2500)

# No test fails on a wall-clock figure, and none of its examples either.
hypothesis.settings.register_profile("untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("untimed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none."""
    if any("gpu" in item.keywords for item in items):
        import torch

        if not torch.cuda.is_available():
            for item in items:
                if "gpu" in item.keywords:
                    item.add_marker(pytest.mark.skip(reason="no GPU on this machine"))


@pytest.fixture(autouse=True)
def gpu_for_its_tests_alone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide a GPU from tests that are not marked with it: their figures are those of a processor, whatever the machine has."""
    if "gpu" in request.keywords:
        return
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # for processes of the test's own
    if (torch := sys.modules.get("torch")) is not None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture(scope="session")
def kubeconfig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The kubeconfig of a real API server: the one that BELVEDERE_TEST_KUBECONFIG names, else one for this run alone."""
    given = os.environ.get("BELVEDERE_TEST_KUBECONFIG")
    if given:
        yield Path(given)
        return
    with control_plane_or_skip(tmp_path_factory.mktemp("control-plane")) as path:
        yield path


def _group(nodeid: str) -> str:
    """tests/operators/runtime/test_queue.py::test_x → operators/runtime"""
    return str(Path(nodeid.partition("::")[0]).parent.relative_to("tests"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print one line a folder: passed, failed, skipped, seconds, and why tests were skipped."""
    rows: dict[str, Counter[str]] = defaultdict(Counter)
    seconds: Counter[str] = Counter()
    reasons: dict[str, Counter[str]] = defaultdict(Counter)
    for outcome in ("passed", "failed", "error", "skipped", "xfailed", "xpassed"):
        for report in terminalreporter.getreports(outcome):
            group = _group(report.nodeid)
            rows[group][outcome] += 1
            if outcome == "skipped" and isinstance(report.longrepr, tuple):
                reasons[group][str(report.longrepr[2]).removeprefix("Skipped: ")] += 1
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                seconds[_group(report.nodeid)] += report.duration
    if not rows:
        return
    terminalreporter.section("what ran")
    terminalreporter.write_line(f"{'tests':<44}{'passed':>8}{'failed':>8}{'skipped':>9}{'seconds':>9}  skipped because")
    for group in sorted(rows):
        row = rows[group]
        why = "; ".join(f"{reason} ({count})" for reason, count in reasons[group].most_common())
        failed = row["failed"] + row["error"]
        terminalreporter.write_line(
            f"{group:<44}{row['passed']:>8}{failed:>8}{row['skipped']:>9}{seconds[group]:>9.1f}  {why}"
        )


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """Return what makes the tiny engine; its libraries are loaded only for tests that ask for it."""
    import tiny_engine

    return tiny_engine
