"""Training processes that die when they are told: `killed_worker.py CONFIG MODEL ARTIFACTS JOBS`, all but ARTIFACTS as JSON.

Each job is [folder, position]: a process of its own trains with the folder's checkpoints, adds the loss of each step to
losses.jsonl there, and kills itself with SIGKILL after the step at the position (null: never). It is forked from this one, so
that torch is imported once; nothing is computed here before.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import torch

from belvedere_platform.artifacts import ArtifactStore
from belvedere_training.config import RunConfig
from belvedere_training.model.config import SIZES, ModelConfig
from belvedere_training.recipe import prepare
from belvedere_training.world import LocalWorld


def work(config: RunConfig, store: ArtifactStore, folder: Path, last: int | None) -> None:
    """Train from the last checkpoint, and die after the step at position `last`."""
    torch.set_num_threads(1)
    loop = prepare(config, store, LocalWorld(folder / "state", cores=1))
    step = loop.stepper.step
    with (folder / "losses.jsonl").open("a", buffering=1) as file:

        def told(position: int) -> float:
            loss = step(position)
            file.write(json.dumps([position, loss.hex()]) + "\n")
            if position == last:
                os.kill(os.getpid(), signal.SIGKILL)
            return loss

        loop.stepper.step = told  # type: ignore[method-assign]
        loop.run()


def main() -> None:
    """Run the jobs one after the other and print how each ended, as the last line."""
    config = RunConfig.model_validate_json(sys.argv[1])
    SIZES["nano"] = ModelConfig.model_validate_json(sys.argv[2])
    ends = []
    for folder, last in json.loads(sys.argv[4]):
        child = os.fork()
        if not child:
            work(config, ArtifactStore(sys.argv[3]), Path(folder), last)
            os._exit(0)
        ends.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    print(json.dumps(ends))


if __name__ == "__main__":
    main()
