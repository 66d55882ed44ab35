"""Workers killed with SIGKILL at random steps: the run that goes on makes the unbroken run's losses, bit for bit."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from belvedere_platform.artifacts import ArtifactStore
from belvedere_training.config import RunConfig, resolve
from belvedere_training.model.config import ModelConfig

BATCH, PAIRS, KILLS = 16, 96, 3  # a checkpoint every second step


def steps(folder: Path) -> list[tuple[int, str]]:
    """Return position and loss of each step in the order made, those made twice twice."""
    return [tuple(json.loads(line)) for line in (folder / "losses.jsonl").read_text().splitlines()]


def test_a_killed_run_ends_as_the_unbroken_one_does_and_loses_no_more_than_a_checkpoint(
    store: ArtifactStore, tiny_config: ModelConfig, run_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    config = resolve(run_config(pairs=PAIRS), store)
    draw = random.Random(0)
    killed = {tmp_path / f"killed-{number}": draw.randrange(0, PAIRS - BATCH, BATCH) for number in range(KILLS)}
    jobs = [(tmp_path / "unbroken", None), *killed.items(), *((folder, None) for folder in killed)]
    for folder, _ in jobs:
        folder.mkdir(exist_ok=True)
    arguments = [config.model_dump_json(by_alias=True), tiny_config.model_dump_json(), store.url]
    program = Path(__file__).with_name("killed_worker.py")
    done = subprocess.run(
        [sys.executable, str(program), *arguments, json.dumps(jobs, default=str)],
        capture_output=True,
        text=True,
        check=True,
        timeout=600,
    )
    ends = json.loads(done.stdout.splitlines()[-1])
    assert ends == [0, *[-signal.SIGKILL] * KILLS, *[0] * KILLS], done.stderr
    expected = dict(steps(tmp_path / "unbroken"))
    assert len(expected) == PAIRS // BATCH
    for folder, last in killed.items():
        made = steps(folder)
        assert dict(made) == expected
        again = len(made) - len(expected)
        # Two steps since the last checkpoint, and two more where that one was still being written.
        assert again <= 4, f"killed after the step at {last}"
