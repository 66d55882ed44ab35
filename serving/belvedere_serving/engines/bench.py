"""Times an engine that is in the store, beside the model it came from."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from belvedere_platform.artifacts import ArtifactKind, ArtifactStore
from belvedere_serving.engines import measure
from belvedere_serving.engines.artifacts import resolve_as
from belvedere_serving.engines.build import one_torch_thread
from belvedere_serving.engines.compiling import TOWERS
from belvedere_serving.engines.device import device_for
from belvedere_serving.engines.loading import load_runtime
from belvedere_serving.engines.source import TorchRuntime, check_source, read_held_out


def bench(store: ArtifactStore, reference: str, *, rounds: int = 7, repeats: int = 50) -> dict[str, Any]:
    """Return the latency of each tower for one input, engine and torch in alternating rounds, one thread each."""
    digest = resolve_as(ArtifactKind.ENGINE, store, reference).digest
    config = store.config(digest)
    with tempfile.TemporaryDirectory(prefix="belvedere-bench-") as scratch, one_torch_thread():
        engine = store.pull(digest, Path(scratch, "engine"))
        model = store.pull(config["modelDigest"], Path(scratch, "model"))
        check_source(model, config["modelDigest"])
        runtime = load_runtime(engine, TOWERS, threads=1)
        torch, held_out = TorchRuntime(model), read_held_out(model)
        reports = {
            tower: measure.latency(runtime, torch, tower, held_out[tower], rounds=rounds, repeats=repeats)
            for tower in TOWERS
        }
    return {
        "digest": digest,
        "device": str(device_for(config["target"]["device"])),
        "latency": {tower: report.model_dump(by_alias=True) for tower, report in reports.items()},
    }
