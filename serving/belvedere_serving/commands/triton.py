"""`belvedere triton`: write a model repository from an engine, and serve it with Triton."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from belvedere_platform.cli.options import artifact_store, artifacts_option, output_option, verbose_option

_C = TypeVar("_C", bound=Callable[..., Any])
_PORT = click.IntRange(0, 65535)


@click.group()
def triton() -> None:
    """Serve engines with NVIDIA's Triton instead of Ray Serve."""


def _repository_options(command: _C) -> _C:
    options = (
        click.option("--model-version", required=True, metavar="NAME", help="the ModelVersion that the engine is of"),
        click.option(
            "--backend",
            type=click.Choice(["python", "onnxruntime", "tensorrt", "openvino"]),
            default="python",
            show_default=True,
            help="what runs the engine in Triton; all but python are in the vendor's image only",
        ),
        click.option("--max-batch-size", type=click.IntRange(1, 1024), default=16, show_default=True),
        click.option("--batch-wait-milliseconds", type=click.FloatRange(0, 1000), default=0, show_default=True),
        click.option("--max-queued-requests", type=click.IntRange(1, 100_000), default=256, show_default=True),
        click.option("--instances", type=click.IntRange(1, 64), default=1, show_default=True, help="engines a tower"),
        click.option("--preprocess-instances", type=click.IntRange(1, 64), default=1, show_default=True),
        click.option("--threads", type=click.IntRange(1, 256), default=1, show_default=True, help="threads an engine"),
        click.option("--writing", default="{}", metavar="JSON", help="spec.server.writing of a ModelService"),
        click.option("--cache-mib", type=click.IntRange(0, 65536), default=0, show_default=True, help="response cache"),
        artifacts_option,
        verbose_option,
    )
    for option in reversed(options):
        command = option(command)
    return command


def _write(digest: str, target: Path, given: dict[str, Any]) -> Path:
    from belvedere_platform.artifacts import ArtifactKind
    from belvedere_platform.resources.model_service import WritingOptions
    from belvedere_serving.engines.artifacts import resolve_as
    from belvedere_serving.server import engine_cache
    from belvedere_serving.triton.options import RepositoryOptions
    from belvedere_serving.triton.repository import write_repository

    store = artifact_store()
    engine = engine_cache.fetch(
        store.url, resolve_as(ArtifactKind.ENGINE, store, digest).digest, engine_cache.cache_folder()
    )
    version, cache_mib, writing = (given.pop(name) for name in ("model_version", "cache_mib", "writing"))
    options = RepositoryOptions(
        version=version, response_cache=cache_mib > 0, writing=WritingOptions.read(writing).chosen(), **given
    )
    return write_repository(engine, target, options)


@triton.command()
@click.argument("digest")
@click.option("--into", type=click.Path(path_type=Path, file_okay=False), required=True, help="folder to write")
@output_option("json", "yaml", default="json")
@_repository_options
def repository(digest: str, into: Path, output: str, **given: Any) -> None:
    """Write the model repository of an engine, and say what is in it."""
    from belvedere_platform.cli.rendering import emit

    _write(digest, into, given)
    emit({"repository": str(into), "models": sorted(path.name for path in into.iterdir())}, output)


@triton.command()
@click.argument("digest")
@click.option("--http-port", type=_PORT, default=8000, show_default=True)
@click.option("--grpc-port", type=_PORT, default=8001, show_default=True)
@click.option("--metrics-port", type=_PORT, default=8002, show_default=True)
@click.option("--host", default="127.0.0.1", show_default=True, help="address to listen on")
@click.option(
    "--drain-seconds",
    type=click.FloatRange(0, 600),
    default=0,
    show_default=True,
    help="go on answering for so long when told to stop, until nobody sends requests here any more",
)
@_repository_options
def serve(
    digest: str, http_port: int, grpc_port: int, metrics_port: int, host: str, drain_seconds: float, **given: Any
) -> None:
    """Serve an engine with Triton until interrupted."""
    import sys
    import tempfile

    from belvedere_serving.triton.server import Launch, find_installation, run_until_stopped, tracing_of

    installation = find_installation()
    with tempfile.TemporaryDirectory(prefix="belvedere-triton-") as scratch:
        launch = Launch(
            http_port=http_port,
            grpc_port=grpc_port,
            metrics_port=metrics_port,
            host=host,
            lanes=given["instances"],
            cache_mib=given["cache_mib"],
            tracing=tracing_of(version=given["model_version"]),
            repository=_write(digest, Path(scratch) / "repository", given),
        )
        code = run_until_stopped(installation, launch, drain_seconds=drain_seconds)
    sys.exit(code)
