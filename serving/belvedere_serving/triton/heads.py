"""The heads of an engine in a Triton repository: a model of the Python backend each, with what it needs of the engine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tritonclient.grpc import model_config_pb2 as pb

from belvedere_platform.errors import CorruptData
from belvedere_platform.protocol import ANSWER, CAPTION, EXPLAIN, MATCH
from belvedere_serving.generation.decoder import HEADS_FILE, Heads
from belvedere_serving.server.config import ModelOptions
from belvedere_serving.server.heads import INPUTS_OF, OUTPUT_OF
from belvedere_serving.triton.options import RepositoryOptions

DECOUPLED = (CAPTION, ANSWER)
"""Those that give a text in parts, as it is written."""


def head_names(heads: Heads) -> tuple[str, ...]:
    """Return the V2 models that an engine's heads make."""
    judging = (MATCH, EXPLAIN) if heads.match else ()
    return judging + (DECOUPLED if heads.decoder else ())


def head_config(name: str, options: RepositoryOptions) -> Any:
    """Return the configuration of a head. It takes requests of any number of inputs; those that write join each other's runs."""
    config = pb.ModelConfig(name=name, backend="python", max_batch_size=0)
    for one in INPUTS_OF[name]:
        config.input.add(name=one, data_type=pb.TYPE_STRING, dims=[-1])
    output = OUTPUT_OF[name]
    kind = pb.TYPE_FP32 if output.datatype == "FP32" else pb.TYPE_STRING
    config.output.add(name=output.name, data_type=kind, dims=output.shape)
    config.model_transaction_policy.decoupled = name in DECOUPLED
    config.instance_group.add(kind=pb.ModelInstanceGroup.KIND_CPU, count=1)
    config.version_policy.specific.versions.append(options.version_number)
    run = ModelOptions(
        version=options.version,
        max_batch_size=options.max_batch_size,
        batch_wait_milliseconds=options.batch_wait_milliseconds,
        max_queued_requests=options.max_queued_requests,
        threads=options.threads,
        request_timeout_seconds=options.request_timeout_seconds,
        **options.writing,
    )
    config.parameters["head"].string_value = name
    config.parameters["options"].string_value = run.model_dump_json(by_alias=True)
    return config


def head_files(engine: Path, heads: Heads, name: str) -> Mapping[str, Path | bytes]:
    """Return the files of a head: its programs alone, and a heads.json that names no other."""
    own = heads.model_copy(update={"match": False} if name in DECOUPLED else {"decoder": None})
    files: dict[str, Path | bytes] = {one: engine / one for one in ("preprocess.json", "tokenizer.json")}
    files |= {f"{program}.onnx": engine / f"{program}.onnx" for program in own.programs}
    if missing := [one for one, path in files.items() if isinstance(path, Path) and not path.is_file()]:
        raise CorruptData(f"the engine lacks {', '.join(missing)}; build it again with `belvedere engine build`")
    return {**files, HEADS_FILE: own.model_dump_json(by_alias=True).encode()}
