"""One training process that can be killed at any moment: `training_worker.py FOLDER ARTIFACTS`.

Writes the loss of every step to FOLDER/losses.jsonl as it is made, and the digest of the weights at the end.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import torch

from belvedere_platform.artifacts import ArtifactStore
from belvedere_training.config import RunConfig, resolve
from belvedere_training.recipe import prepare
from belvedere_training.world import LocalWorld
from training_subject import run_config

PAIRS, BATCH, EVERY = 1280, 32, 160


def config_of(name: str) -> RunConfig:
    """Return a run over the drawn shapes with a checkpoint every few steps."""
    config = run_config(name, pairs=PAIRS, dataset="shapes", batchSize=BATCH, warmupPairs=128, precision="fp32")
    return config.model_copy(update={"resume": config.resume.model_copy(update={"checkpoint_every_pairs": EVERY})})


def main() -> None:
    """Train to the end, from the last checkpoint if there is one."""
    folder, store = Path(sys.argv[1]), ArtifactStore(sys.argv[2])
    torch.set_num_threads(1)
    loop = prepare(resolve(config_of("killed"), store), store, LocalWorld(folder / "state", cores=1))
    make = loop.stepper.step
    with (folder / "losses.jsonl").open("a", buffering=1) as file:

        def told(position: int) -> float:
            loss = make(position)
            file.write(json.dumps([position, loss.hex()]) + "\n")
            return loss

        loop.stepper.step = told  # type: ignore[method-assign]
        loop.run()
    digest = hashlib.sha256()
    for name, tensor in sorted(loop.stepper.model.state_dict().items()):
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    (folder / "weights").write_text(digest.hexdigest())


if __name__ == "__main__":
    main()
