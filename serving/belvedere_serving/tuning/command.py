"""`belvedere engine tune`: from words on the command line to a tuning and what it leaves behind."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from belvedere_platform.artifacts import ArtifactKind, ArtifactStore, Descriptor
from belvedere_platform.errors import InvalidInput
from belvedere_platform.protocol import EMBED_TEXT
from belvedere_serving.client.load import bodies
from belvedere_serving.engines.artifacts import resolve_as
from belvedere_serving.engines.loading import ENGINE_FILE
from belvedere_serving.engines.runtime import Variant
from belvedere_serving.tuning.report import plot as draw
from belvedere_serving.tuning.report import service_fragment
from belvedere_serving.tuning.servers import own_servers, triton_server
from belvedere_serving.tuning.tune import Objective, tune

Say = Callable[[str], None]
MOST_INPUTS = 64


def run(
    store: ArtifactStore,
    digests: Sequence[str],
    given: Mapping[str, Any],
    *,
    write: Path | None,
    plot: Path | None,
    say: Say,
) -> dict[str, Any]:
    """Tune, write what was asked for, and return the result as plain data."""
    found = [resolve_as(ArtifactKind.ENGINE, store, reference) for reference in digests]
    engines = {engine.digest: _variant(store, engine) for engine in found}
    triton = given["backend"] == "triton"
    space = {
        "engine": tuple(engines),
        "max_batch_size": _numbers("--batch-sizes", given["batch_sizes"], int, 1, 1024),
        "batch_wait_milliseconds": _numbers("--waits", given["waits"], float, 0, 1000),
        "instances": _numbers("--instances", given["instances"], int, 1, 64),
        "threads": _numbers("--threads", given["threads"], int, 1, 256),
    }
    objective = Objective(
        milliseconds=given["latency_milliseconds"],
        percentile=given["percentile"],
        clients=_numbers("--clients", given["clients"], int, 1, 4096),
        seconds=given["seconds"],
    )
    start = partial(triton_server if triton else own_servers, artifacts=store.url)
    elements = _inputs(store, digests[0], given["model"], given["inputs"])
    tuning = tune(start, space, bodies(given["model"], elements), objective, say=say)
    if plot is not None:
        draw(tuning, {digest: str(variant) for digest, variant in engines.items()}, plot)
    if tuning.chosen is None:
        say(f"nothing answers within {objective.milliseconds:g} ms: allow more, or build a faster engine")
    elif write is not None:
        write.write_text(service_fragment(tuning.chosen, engines[tuning.chosen.settings.engine], given["backend"]))
    return tuning.as_json()


def _variant(store: ArtifactStore, engine: Descriptor) -> Variant:
    if all(entry.name != ENGINE_FILE for entry in engine.files):
        return Variant("onnxruntime", store.config(engine.digest)["target"]["precision"])
    said = json.loads(store.read(engine.digest, ENGINE_FILE))
    return Variant(said["runtime"], said["precision"])


def _numbers(option: str, text: str, kind: type[Any], least: float, most: float) -> tuple[Any, ...]:
    """Return the numbers that an option names, each once, in their order."""
    what = "whole numbers" if kind is int else "numbers"
    try:
        found = tuple(dict.fromkeys(kind(word) for word in text.split(",")))
    except ValueError as error:
        raise InvalidInput(f"{option} is {text!r}; it must be {what} with commas between, as 1,8,32") from error
    if wrong := [number for number in found if not least <= number <= most]:
        raise InvalidInput(f"{option} has {wrong[0]:g}; each must be from {least:g} to {most:g}")
    return found


def _inputs(store: ArtifactStore, engine: str, model: str, path: Path | None) -> list[bytes]:
    if path is not None:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line]
        found = [line.encode() if model == EMBED_TEXT else Path(line).read_bytes() for line in lines]
    else:
        source = store.read(store.config(engine)["modelDigest"], "parity.jsonl").decode()
        entries = [json.loads(line) for line in source.splitlines()]
        key = "text" if model == EMBED_TEXT else "image"
        values = [entry[key] for entry in entries if key in entry]
        found = [value.encode() if model == EMBED_TEXT else base64.b64decode(value) for value in values]
    if not found:
        raise InvalidInput(f"there is no input for {model}: give some with --inputs")
    return found[:MOST_INPUTS]
