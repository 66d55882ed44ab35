"""`belvedere train`: run a training recipe; `belvedere train derive`: make a faulty model from a good one."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path

import click

from belvedere_platform.cli.options import artifacts_option, settings
from belvedere_platform.errors import InvalidInput, NotFound


@click.group(invoke_without_command=True)
@click.option(
    "--config", "config_path", type=click.Path(path_type=Path), help="YAML: a TrainingRun, or a run's configuration"
)
@click.option("--config-env", metavar="VAR", help="environment variable that holds the configuration as JSON")
@click.option(
    "--workers", type=click.IntRange(1), default=None, help="so many workers, instead of workers.min to workers.max"
)
@click.option("--local", is_flag=True, help="one process without Ray")
@click.option(
    "--checkpoints",
    type=click.Path(path_type=Path),
    default=None,
    help="with --local: folder to keep and resume the state",
)
@artifacts_option
@click.pass_context
def train(
    context: click.Context,
    config_path: Path | None,
    config_env: str | None,
    workers: int | None,
    local: bool,
    checkpoints: Path | None,
) -> None:
    """Train, evaluate and publish a model."""
    if context.invoked_subcommand is not None:
        return
    from belvedere_platform.artifacts import ArtifactStore
    from belvedere_training.config import read_config, resolve

    text, where = _config_text(config_path, config_env)
    config = read_config(text, where=where)
    url = settings().artifacts_url
    store = ArtifactStore(url)
    config = resolve(config, store)  # before any worker starts, so that a missing name is told at once
    if local:
        from belvedere_training.recipe import train as run_recipe
        from belvedere_training.world import LocalWorld

        notice = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: notice.set())  # a machine that is taken away says so before
        descriptor = run_recipe(config, store, LocalWorld(checkpoints, notice=notice))
        assert descriptor is not None
    else:
        from belvedere_training.driver import train_on_ray

        descriptor = train_on_ray(config, url, workers)
    click.echo(json.dumps({"tag": config.output_tag, "digest": descriptor.digest}))


def _config_text(path: Path | None, variable: str | None) -> tuple[str, str]:
    if (path is None) == (variable is None):
        raise InvalidInput("give exactly one of --config FILE and --config-env VAR")
    if path is not None:
        if not path.is_file():
            raise NotFound(f"--config {path}: there is no such file")
        try:
            return path.read_text(encoding="utf8"), str(path)
        except UnicodeDecodeError as error:
            raise InvalidInput(f"--config {path} is not a text file: {error}") from error
    assert variable is not None
    if variable not in os.environ:
        raise InvalidInput(f"--config-env {variable}: this environment variable is not set")
    return os.environ[variable], f"${variable}"


@train.command()
@click.option("--from", "source", required=True, metavar="REFERENCE", help="tag or digest of a good model artifact")
@click.option(
    "--fault", required=True, type=click.Choice(["failing", "slow", "wrong"]), help="what is wrong with the copy"
)
@click.option("--tag", required=True, help="tag of the new model artifact")
@click.option("--version", default=None, help="name of the version; the last part of the tag by default")
@artifacts_option
def derive(source: str, fault: str, tag: str, version: str | None) -> None:
    """Derive a really faulty model from a good one, to try out what guards a rollout."""
    from belvedere_platform.cli.options import artifact_store
    from belvedere_training.faults import FAULTS
    from belvedere_training.faults import derive as derive_model

    kind = next(known for known in FAULTS if known == fault)
    descriptor = derive_model(artifact_store(), source, kind, tag=tag, version=version)
    click.echo(json.dumps({"tag": tag, "digest": descriptor.digest}))
