"""Runs that are killed at random steps: do they end as the unbroken one does, and what is lost."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from belvedere_platform.telemetry.benchmark import Row, result
from belvedere_training.data.manifest import push
from belvedere_training.data.shapes import build_shapes
from training_subject import Subject
from training_worker import BATCH, EVERY, PAIRS

NAMES = ("kill_resume_runs_equal", "kill_resume_lost_steps")
ELASTIC_NAMES = ("elastic_lost_steps",)
RUNS = 10
PATIENCE_SECONDS = 300.0
ELASTIC_PAIRS, ELASTIC_EVERY = 2880, 320
_SNAPSHOT = "checkpoint_manager_snapshot.json"  # Ray Train's own


def rows(subject: Subject) -> list[Row]:
    """Kill ten runs, each at a random step."""
    return killed_rows(with_shapes(subject), subject.store.url)


def elastic_rows(subject: Subject) -> list[Row]:
    """Kill one of two workers on Ray."""
    return [elastic_row(with_shapes(subject), subject.store.url)]


def with_shapes(subject: Subject) -> Path:
    """Push the drawn shapes, and return a folder for the runs."""
    folder = subject.folder / "faults"
    push(build_shapes(folder / "shapes"), subject.store, "datasets/shapes")
    return folder


def killed_rows(folder: Path, artifacts: str) -> list[Row]:
    """Return how many of the killed runs are bit for bit the unbroken one, and the most steps that were made twice."""
    draw = random.Random(0)
    unbroken = folder / "unbroken"
    finish(worker(unbroken, artifacts))
    expected, weights = losses(unbroken), (unbroken / "weights").read_text()
    equal, lost = 0, []
    for number in range(RUNS):
        one = folder / f"killed-{number}"
        at = draw.randrange(BATCH, PAIRS - BATCH, BATCH)
        kill_at(worker(one, artifacts), one, at)
        made = len(list(lines(one)))
        finish(worker(one, artifacts))
        positions = [position for position, _ in lines(one)]
        lost.append((positions[made - 1] + BATCH - positions[made]) // BATCH if made < len(positions) else 0)
        same = losses(one) == expected and (one / "weights").read_text() == weights
        equal += same
        print(f"  killed at {at}: {'equal' if same else 'NOT EQUAL'}, {lost[-1]} steps again", flush=True)
    note = f"of {RUNS} runs killed with SIGKILL at a random step; losses of all steps and final weights, bit for bit"
    return [
        result(NAMES[0], float(equal), "runs", "higher", float(RUNS), note=note),
        result(
            NAMES[1],
            float(max(lost)),
            "steps",
            "lower",
            float(EVERY // BATCH + 1),
            note=f"most of {RUNS}; a checkpoint every {EVERY // BATCH} steps, written while training goes on",
        ),
    ]


def worker(folder: Path, artifacts: str) -> subprocess.Popen[bytes]:
    """Start the training process."""
    folder.mkdir(parents=True, exist_ok=True)
    program = Path(__file__).with_name("training_worker.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, str(program), str(folder), artifacts], stdout=subprocess.DEVNULL, env=environment
    )


def finish(process: subprocess.Popen[bytes]) -> None:
    """Wait until the process is done; RuntimeError when it failed."""
    if process.wait(PATIENCE_SECONDS):
        raise RuntimeError(f"the training process ended with {process.returncode}")


def kill_at(process: subprocess.Popen[bytes], folder: Path, position: int) -> None:
    """Kill the process with SIGKILL as soon as it has made the step at the position."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        if any(made >= position for made, _ in lines(folder)):
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.01)
    process.wait(PATIENCE_SECONDS)


def lines(folder: Path) -> list[tuple[int, str]]:
    """Return the steps in the order in which they were made, those made twice twice; a line cut short is left out."""
    path = folder / "losses.jsonl"
    text = path.read_text() if path.exists() else ""
    return [tuple(json.loads(line)) for line in text.splitlines(keepends=True) if line.endswith("]\n")]


def losses(folder: Path) -> dict[int, str]:
    """Return the last loss of each position."""
    return dict(lines(folder))


def elastic_row(folder: Path, artifacts: str) -> Row:
    """Kill one of two Ray Train workers, and return how many steps are made again when the run goes on."""
    config = {
        "model": "elastic",
        "data": {"dataset": "shapes"},
        "optimization": {"pairs": ELASTIC_PAIRS, "batchSize": BATCH, "warmupPairs": 128, "precision": "fp32"},
        "workers": {"min": 1, "max": 2, "resources": {"cpu": 0.5}},
        "resume": {"checkpointEveryPairs": ELASTIC_EVERY},
        "evaluation": {"everyPairs": 10**9},
        "run": {"name": "elastic", "uid": str(os.getpid())},
    }
    (folder / "elastic.json").write_text(json.dumps(config))
    environment = {
        **os.environ,
        "BELVEDERE_HOME": str(folder / "home"),
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
    }
    environment["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"
    command = [sys.executable, "-m", "belvedere_platform.cli.main", "train", "--config", str(folder / "elastic.json")]
    process = subprocess.Popen(
        [*command, "--artifacts", artifacts],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )
    silence = Silence(process)
    try:
        return watched(process, silence, folder / "home" / "checkpoints")
    finally:
        silence.end()
        if process.poll() is None:  # it ends its own Ray when it is asked to
            process.terminate()
            process.wait(60)


class Silence:
    """Ends a process that has said nothing for so long: how long a run may take depends on the machine, a hung one says nothing."""

    def __init__(self, process: subprocess.Popen[str], seconds: float = PATIENCE_SECONDS) -> None:
        self.process, self.seconds = process, seconds
        self.broken()

    def broken(self) -> None:
        """Begin to wait anew."""
        self.end()
        self._timer = threading.Timer(self.seconds, self.process.terminate)
        self._timer.start()

    def end(self) -> None:
        """Wait no longer."""
        if hasattr(self, "_timer"):
            self._timer.cancel()


def is_kept(checkpoints: Path) -> bool:
    """Return whether Ray Train has a whole checkpoint that it would go on from, by what it says of the only run in the folder."""
    try:
        return any(
            json.loads(snapshot.read_text())["checkpoint_results"] for snapshot in checkpoints.glob(f"*/{_SNAPSHOT}")
        )
    except (FileNotFoundError, json.JSONDecodeError):
        return False  # not written yet, or this very moment


def watched(process: subprocess.Popen[str], silence: Silence, checkpoints: Path) -> Row:
    """Kill one worker once both train and a checkpoint is whole, and return the row from what the run says."""
    assert process.stdout is not None
    events: list[dict[str, Any]] = []
    killed_at, killed = None, 0.0
    workers: dict[int, int] = {}
    said: list[str] = []
    for line in process.stdout:
        said.append(line)
        start = line.find('{"event"')
        if start < 0:
            continue
        event = json.loads(line[start : line.rindex("}") + 1])
        events.append({**event, "at": time.monotonic()})
        silence.broken()
        if event["event"] == "worker" and killed_at is None:
            workers[event["rank"]] = event["pid"]
        pairs = int(event.get("pairs", 0))
        if event["event"] != "progress":
            print(f"  {line[start:].strip()}", flush=True)
        # Checkpoints are written while training goes on: which of them is whole by now, Ray Train alone knows.
        if killed_at is None and event["event"] == "progress" and len(workers) == 2 and is_kept(checkpoints):
            killed_at, killed = pairs, time.monotonic()
            os.kill(workers[1], signal.SIGKILL)
            print(f"  killed worker 1 at {pairs} pairs", flush=True)
    if process.wait(PATIENCE_SECONDS) or killed_at is None:
        raise RuntimeError(f"the run ended with {process.returncode}: {''.join(said[-20:])}")
    reached, again = around_the_kill(events)
    on = [event for event in events if event["at"] > killed]
    seconds = next(event["at"] for event in on if event["event"] == "resumed") - killed
    left = max(event["of"] for event in on if event["event"] == "worker")
    return result(
        ELASTIC_NAMES[0],
        (reached - again) / BATCH,
        "steps",
        "lower",
        float(2 * ELASTIC_EVERY // BATCH),
        note=f"one of two workers killed at {reached} pairs; {left} went on from {again} after {seconds:.0f} s and ended the run; "
        f"a checkpoint every {ELASTIC_EVERY} pairs",
    )


def around_the_kill(events: list[dict[str, Any]]) -> tuple[int, int]:
    """Return the last position that was told before the run went on anew, and the one that it went on from."""
    places = [number for number, event in enumerate(events) if event["event"] == "resumed"]
    if not places:
        raise RuntimeError("the run never said that it went on: it began anew, or was not done in time")
    reached = max(int(event["pairs"]) for event in events[: places[0]] if event["event"] == "progress")
    return reached, int(events[places[0]]["pairs"])
