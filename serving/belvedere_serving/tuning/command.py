"""`belvedere engine tune`: from words on the command line to a tuning and what it leaves behind."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from belvedere_platform.artifacts import ArtifactStore
from belvedere_platform.errors import InvalidInput
from belvedere_platform.protocol import EMBED_TEXT
from belvedere_serving.client.load import bodies
from belvedere_serving.engines.loading import ENGINE_FILE
from belvedere_serving.engines.runtime import Variant
from belvedere_serving.tuning.report import plot as draw
from belvedere_serving.tuning.report import service_fragment
from belvedere_serving.tuning.servers import own_server, triton_server
from belvedere_serving.tuning.tune import Objective, tune

Say = Callable[[str], None]
MOST_INPUTS = 64


def run(
    store: ArtifactStore,
    digests: Sequence[str],
    given: Mapping[str, Any],
    *,
    output: Path | None,
    plot: Path | None,
    say: Say,
) -> dict[str, Any]:
    """Tune, write what was asked for, and return the result as plain data."""
    engines = {store.resolve(reference).digest: _variant(store, reference) for reference in digests}
    triton = given["backend"] == "triton"
    space = {
        "engine": tuple(engines),
        "max_batch_size": _numbers("--batch-sizes", given["batch_sizes"], int),
        "batch_wait_milliseconds": _numbers("--waits", given["waits"], float),
        "instances": _numbers("--instances", given["instances"], int) if triton else (1,),
        "threads": _numbers("--threads", given["threads"], int),
    }
    objective = Objective(
        milliseconds=given["latency_milliseconds"],
        percentile=given["percentile"],
        clients=_numbers("--clients", given["clients"], int),
        seconds=given["seconds"],
    )
    start = partial(triton_server if triton else own_server, artifacts=store.url)
    elements = _inputs(store, digests[0], given["model"], given["inputs"])
    tuning = tune(start, space, bodies(given["model"], elements), objective, say=say)
    if plot is not None:
        draw(tuning, {digest: str(variant) for digest, variant in engines.items()}, plot)
    if tuning.chosen is None:
        say(f"nothing answers within {objective.milliseconds:g} ms: allow more, or build a faster engine")
    elif output is not None:
        output.write_text(service_fragment(tuning.chosen, engines[tuning.chosen.settings.engine], given["backend"]))
    return tuning.as_json()


def _variant(store: ArtifactStore, reference: str) -> Variant:
    if all(entry.name != ENGINE_FILE for entry in store.resolve(reference).files):
        return Variant("onnxruntime", store.config(reference)["target"]["precision"])
    said = json.loads(store.read(reference, ENGINE_FILE))
    return Variant(said["runtime"], said["precision"])


def _numbers(option: str, text: str, kind: type[Any]) -> tuple[Any, ...]:
    try:
        found = tuple(kind(word) for word in text.split(","))
    except ValueError as error:
        raise InvalidInput(f"{option} is {text!r}; it must be numbers with commas between, as 1,8,32") from error
    if any(number < 0 for number in found):
        raise InvalidInput(f"{option} is {text!r}; none may be negative")
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
