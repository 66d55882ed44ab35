"""Options that every verb shares, and what they resolve to: which store, which home, which namespace, which output.

A verb takes them with the decorators below and asks `settings()` for the result; `run` is how a verb does asynchronous work.
Options work before the verb and after it: `belvedere --home DIR get trun` and `belvedere get trun --home DIR`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from belvedere_platform.artifacts import ArtifactStore
    from belvedere_platform.store import ObjectStore

Command = TypeVar("Command", bound=Callable[..., Any])
Result = TypeVar("Result")

_META = "belvedere.options."
FIELD_MANAGER = "belvedere-cli"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Where everything is, as options, environment and defaults say."""

    home: Path
    store_url: str
    artifacts_url: str
    namespace: str
    verbose: bool = False


def called_as_kubectl_plugin() -> bool:
    """Whether this process was started as `kubectl belvedere`."""
    return Path(sys.argv[0]).name.startswith("kubectl")


def _remember(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
    if value is not None and value is not False:
        context.meta[_META + str(parameter.name)] = value
    return value


def home_option(command: Command) -> Command:
    """Add --home."""
    return click.option(
        "--home",
        type=click.Path(path_type=Path, file_okay=False),
        metavar="DIR",
        expose_value=False,
        callback=_remember,
        help="State directory [env BELVEDERE_HOME, default ~/.belvedere].",
    )(command)


def store_option(command: Command) -> Command:
    """Add --store and --home."""
    add = click.option(
        "--store",
        metavar="URL",
        expose_value=False,
        callback=_remember,
        help="Object store: sqlite:///PATH or kubernetes:// [env BELVEDERE_STORE, default sqlite in --home].",
    )
    return add(home_option(command))


def artifacts_option(command: Command) -> Command:
    """Add --artifacts."""
    return click.option(
        "--artifacts",
        metavar="URL",
        expose_value=False,
        callback=_remember,
        help="Artifact store: file://, s3://, gs:// [env BELVEDERE_ARTIFACTS, default in --home].",
    )(command)


def namespace_option(command: Command) -> Command:
    """Add -n/--namespace; the verb gets `namespace`."""
    return click.option(
        "-n",
        "--namespace",
        metavar="NAME",
        callback=_namespace,
        help="Namespace [default: default].",
    )(command)


def _namespace(context: click.Context, parameter: click.Parameter, value: str | None) -> str:
    _remember(context, parameter, value)
    found: str = context.meta.get(_META + "namespace", "default")
    return found


def output_option(*formats: str, default: str = "table") -> Callable[[Command], Command]:
    """Add -o/--output with the formats given, or table, json and yaml; the verb gets `output`."""
    choices = formats or ("table", "json", "yaml")
    return click.option(
        "-o",
        "--output",
        type=click.Choice(choices),
        default=default,
        show_default=True,
        help="How to print the result.",
    )


def verbose_option(command: Command) -> Command:
    """Add --verbose."""
    return click.option(
        "--verbose",
        is_flag=True,
        expose_value=False,
        callback=_verbose,
        help="Show the traceback of an error, and what is logged on the way.",
    )(command)


def _verbose(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        from belvedere_platform.telemetry.logging import configure_logging

        configure_logging(verbose=True)
        _remember(context, parameter, value)


def settings(context: click.Context | None = None) -> Settings:
    """Return what options, environment and defaults say, in this order."""
    given = (context or click.get_current_context()).meta

    def option(name: str) -> Any:
        return given.get(_META + name)

    # A home given by hand speaks for all that is in it, against the environment.
    environment = {} if option("home") is not None else os.environ
    home = Path(option("home") or environment.get("BELVEDERE_HOME") or "~/.belvedere").expanduser().absolute()
    embedded = "kubernetes://" if called_as_kubectl_plugin() else f"sqlite:///{home / 'store.db'}"
    return Settings(
        home=home,
        store_url=option("store") or environment.get("BELVEDERE_STORE") or embedded,
        artifacts_url=option("artifacts") or environment.get("BELVEDERE_ARTIFACTS") or (home / "artifacts").as_uri(),
        namespace=option("namespace") or "default",
        verbose=bool(option("verbose")),
    )


@contextlib.asynccontextmanager
async def object_store() -> AsyncIterator[ObjectStore]:
    """Open the object store that the options name, for the time of a with block."""
    from belvedere_platform.store.connect import connect

    store = connect(settings().store_url)
    try:
        yield store
    finally:
        await store.close()


def artifact_store() -> ArtifactStore:
    """Return the artifact store that the options name."""
    from belvedere_platform.artifacts import ArtifactStore

    return ArtifactStore(settings().artifacts_url)


def run(work: Coroutine[Any, Any, Result]) -> Result:
    """Do asynchronous work from a verb and return its result."""
    return asyncio.run(work)
