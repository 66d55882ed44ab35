"""`belvedere engine`: build engines, time them, serve one without a control plane."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click

from belvedere_platform.cli.options import artifact_store, artifacts_option, output_option, verbose_option
from belvedere_platform.cli.rendering import emit


@click.group()
def engine() -> None:
    """Compile models, compare them with their source, time them."""


@engine.command()
@click.option("--model-digest", required=True, metavar="DIGEST", help="model artifact: a digest or a tag")
@click.option(
    "--runtime",
    type=click.Choice(["auto", "onnxruntime", "openvino", "torch", "tensorrt", "litert"]),
    default="onnxruntime",
    show_default=True,
    help="auto: the fastest here that passes parity",
)
@click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16", "fp16", "int8"]),
    default="fp32",
    show_default=True,
    help="auto, with runtime auto, leaves it open too",
)
@click.option("--device", type=click.Choice(["cpu", "gpu"]), default="cpu", show_default=True)
@click.option(
    "--parity-cosine-minimum",
    type=click.FloatRange(-1, 1),
    default=0.98,
    show_default=True,
    help="smallest cosine allowed between an embedding of the engine and of the model",
)
@click.option(
    "--parity-top1-minimum",
    type=click.FloatRange(0, 1),
    default=0.95,
    show_default=True,
    help="share of texts that must find the same picture first",
)
@click.option("--tag", default=None, help="one more tag for the engine artifact")
@output_option("json", "yaml", default="json")
@artifacts_option
@verbose_option
def build(
    model_digest: str,
    runtime: str,
    precision: str,
    device: str,
    parity_cosine_minimum: float,
    parity_top1_minimum: float,
    tag: str | None,
    output: str,
) -> None:
    """Build an engine, or find the one built before, and print its figures.

    The engine is pushed whether or not parity holds; `passed` in the result and the figures in its config say so.
    """
    from belvedere_platform.resources.engine import ParityGate
    from belvedere_serving.engines.build import build as build_engine
    from belvedere_serving.engines.targets import check_target

    started = time.monotonic()

    def say(message: str) -> None:
        click.echo(f"[{time.monotonic() - started:6.1f} s] {message}", err=True)

    target = check_target({"runtime": runtime, "precision": precision, "device": device})
    gate = ParityGate(cosine_minimum=parity_cosine_minimum, top1_agreement_minimum=parity_top1_minimum)
    result = build_engine(artifact_store(), model_digest, target, gate, tag=tag, say=say)
    say(f"{'reused' if result.reused else 'built'} {result.digest}; parity {'held' if result.passed else 'failed'}")
    emit(result.as_json(), output)


@engine.command()
@click.argument("digest")
@click.option("--rounds", type=click.IntRange(1, 1000), default=7, show_default=True)
@click.option("--repeats", type=click.IntRange(1, 10_000), default=50, show_default=True, help="single runs a round")
@output_option("json", "yaml", default="json")
@artifacts_option
@verbose_option
def bench(digest: str, rounds: int, repeats: int, output: str) -> None:
    """Time an engine for one input beside its model in torch, and print the figures."""
    from belvedere_serving.engines.bench import bench as bench_engine

    emit(bench_engine(artifact_store(), digest, rounds=rounds, repeats=repeats), output)


@engine.command()
@click.argument("digest")
@click.option("--http-port", type=click.IntRange(0, 65535), default=8000, show_default=True)
@click.option("--grpc-port", type=click.IntRange(0, 65535), default=8001, show_default=True)
@click.option("--max-batch-size", type=click.IntRange(1, 1024), default=16, show_default=True)
@click.option("--batch-wait-milliseconds", type=click.FloatRange(0, 1000), default=2, show_default=True)
@click.option("--threads", type=click.IntRange(1, 256), default=1, show_default=True)
@click.option("--plugins", type=click.Path(path_type=Path, exists=True, file_okay=False), help="a folder of plugins")
@artifacts_option
@verbose_option
def serve(digest: str, http_port: int, grpc_port: int, plugins: Path | None, **batching: Any) -> None:
    """Serve an engine by V2 on this machine without a control plane, until interrupted."""
    import asyncio

    from belvedere_platform.artifacts import ArtifactKind
    from belvedere_serving.engines.artifacts import resolve_as
    from belvedere_serving.server.bare import serve_until_stopped
    from belvedere_serving.server.config import ServerConfig

    store = artifact_store()
    found = resolve_as(ArtifactKind.ENGINE, store, digest)
    described = store.config(found.digest)
    config = ServerConfig(
        service="bare",
        model=described["modelDigest"][:19],
        version=described["modelDigest"].removeprefix("sha256:")[:12],
        engine_digest=found.digest,
        artifacts=store.url,
        plugins=str(plugins.absolute()) if plugins else "",
        **batching,
    )

    def say(http: int, grpc: int) -> None:
        click.echo(json.dumps({"http": f"http://127.0.0.1:{http}", "grpc": f"127.0.0.1:{grpc}"}))

    asyncio.run(serve_until_stopped(config, http_port=http_port, grpc_port=grpc_port, started=say))


@engine.command()
@click.argument("digests", nargs=-1, required=True, metavar="DIGEST...")
@click.option("--latency-milliseconds", type=click.FloatRange(0.1), required=True, help="the objective")
@click.option("--percentile", type=click.FloatRange(1, 99.9), default=95, show_default=True)
@click.option("--model", type=click.Choice(["embed_text", "embed_image"]), default="embed_image", show_default=True)
@click.option("--backend", type=click.Choice(["rayServe", "triton"]), default="rayServe", show_default=True)
@click.option("--batch-sizes", default="1,8,32", show_default=True, help="to try")
@click.option("--waits", default="0,2,5", show_default=True, help="milliseconds to try")
@click.option("--instances", default="1", show_default=True, help="engines (with rayServe: replicas) to try")
@click.option("--threads", default="1,2", show_default=True, help="threads of an engine to try")
@click.option("--clients", default="1,2,4,8,16,32", show_default=True, help="clients at once, fewest first")
@click.option(
    "--seconds", type=click.FloatRange(0.1, 600), default=2, show_default=True, help="for each number of clients"
)
@click.option(
    "--inputs",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="a line of text or a path of a picture each [default: the model's held-out inputs]",
)
@click.option(
    "--write", type=click.Path(path_type=Path, dir_okay=False), help="write the lines for a ModelService here"
)
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="draw throughput against latency here")
@output_option("json", "yaml", default="json")
@artifacts_option
@verbose_option
def tune(digests: tuple[str, ...], write: Path | None, plot: Path | None, output: str, **given: Any) -> None:
    """Find the settings that answer most within a latency objective, on the real server, and print them.

    Several engines of one model, say one in fp32 and one in int8, are compared with each other.
    """
    from belvedere_serving.tuning.command import run

    found = run(artifact_store(), digests, given, write=write, plot=plot, say=lambda line: click.echo(line, err=True))
    emit(found, output)
