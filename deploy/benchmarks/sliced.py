"""Long runs of a benchmark in slices: with $BELVEDERE_BENCH_STATE a run that is cut off goes on the next time where it stood.

A run is cut off after $BELVEDERE_BENCH_SLICE_SECONDS, so that a benchmark of an hour can be had in pieces on a shared machine.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from belvedere_platform.artifacts import ArtifactStore
from belvedere_training.config import RunConfig, resolve
from belvedere_training.loop import Loop
from belvedere_training.recipe import prepare
from belvedere_training.world import LocalWorld

STATE = Path(os.environ["BELVEDERE_BENCH_STATE"]) if "BELVEDERE_BENCH_STATE" in os.environ else None
SLICE_SECONDS = float(os.environ.get("BELVEDERE_BENCH_SLICE_SECONDS", "86400"))
EVERY = 12_800


def trained(
    config: RunConfig,
    store: ArtifactStore,
    *,
    cores: int | None = None,
    begun: Callable[[Loop], None] = lambda _: None,
) -> tuple[Loop, float, float]:
    """Train to the end of the budget, and return the seconds by the clock and of processor time, those of earlier slices included.

    Interrupted when the slice ended first. The state lies in a folder of the run's name and configuration: what another one left
    under the same name neither hides it nor counts. `begun` is given the loop before it makes a step.
    """
    resume = config.resume.model_copy(update={"checkpoint_every_pairs": EVERY})
    config = resolve(config.model_copy(update={"resume": resume}), store)
    folder = STATE / f"{config.run.name}-{config.digest().removeprefix('sha256:')[:12]}" if STATE else None
    notice, kept = threading.Event(), folder / "seconds.json" if folder else None
    before = json.loads(kept.read_text()) if kept and kept.exists() else [0.0, 0.0]
    clock, processor = time.perf_counter(), time.process_time()
    loop = prepare(config, store, LocalWorld(folder / "state" if folder else None, cores=cores, notice=notice))
    timer = threading.Timer(SLICE_SECONDS, notice.set)
    timer.start()
    try:
        begun(loop)
        loop.run()
        loop.world.keep(loop.state(), {"pairs": loop.progress.pairs})
        loop.world.settle()
    finally:
        timer.cancel()
        spent = [before[0] + time.perf_counter() - clock, before[1] + time.process_time() - processor]
        if kept:
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(json.dumps(spent))
    return loop, spent[0], spent[1]
