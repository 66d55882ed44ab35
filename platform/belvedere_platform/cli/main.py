"""The group `belvedere`: finds verbs by name, imports one only when it is used, and turns errors into one sentence and an exit code."""

from __future__ import annotations

import ast
import errno
import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, NoReturn

import click

from belvedere_platform.cli.options import (
    artifacts_option,
    called_as_kubectl_plugin,
    namespace_option,
    store_option,
    verbose_option,
)
from belvedere_platform.errors import BelvedereError, InvalidInput, Unavailable

COMMANDS = {
    "apply": "belvedere_platform.cli.apply:apply",
    "artifact": "belvedere_platform.cli.artifact:artifact",
    "completion": "belvedere_platform.cli.completion:completion",
    "delete": "belvedere_platform.cli.delete:delete",
    "describe": "belvedere_platform.cli.describe:describe",
    "explain": "belvedere_platform.cli.explain:explain",
    "get": "belvedere_platform.cli.get:get",
    "lineage": "belvedere_platform.cli.lineage:lineage",
    "logs": "belvedere_platform.cli.logs:logs",
    "model": "belvedere_platform.cli.model:model",
    "version": "belvedere_platform.cli.version:version",
    "wait": "belvedere_platform.cli.wait:wait",
}
EXIT_OF_ERRNO = {errno.ENOENT: 3, errno.ENOSPC: 7, errno.EDQUOT: 7}
EXIT_CODES = """\b
Exit codes:
  0  done
  1  an error that has no code of its own
  2  wrong input: a field, flag or file
  3  not found: an object, artifact or file
  4  conflict: changed by someone else, or exists already
  5  unavailable: control plane, Ray, Prometheus, a port; or a wait that ran out
  6  rejected: evaluation, parity or rollout gate
  7  corrupt data, or storage is full
  130  interrupted"""


class VerbGroup(click.Group):
    """Verbs known by name; the module of one is imported when that verb runs."""

    def _targets(self) -> dict[str, str]:
        brought = {entry.name: entry.value for entry in entry_points(group="belvedere.commands")}
        return brought | COMMANDS

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the verbs' names."""
        return sorted({*self._targets(), *self.commands})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one verb. Raises Unavailable when its module cannot be imported: the other verbs go on working."""
        target = self._targets().get(cmd_name)
        if target is None:
            return super().get_command(ctx, cmd_name)
        module, _, attribute = target.partition(":")
        try:
            command: click.Command = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError, SyntaxError) as error:
            raise Unavailable(
                f"`belvedere {cmd_name}` cannot be loaded from {target}: {error}; "
                "install Belvedere again, `belvedere doctor` says what is missing"
            ) from error
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the verb, or say which one was probably meant."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            raise InvalidInput(_unknown_verb(args[0], self.list_commands(ctx))) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the verbs with their first sentence, read from the source rather than by importing it."""
        targets = self._targets()
        rows = [(name, first_sentence(targets[name])) for name in self.list_commands(ctx) if name in targets]
        with formatter.section("Verbs"):
            formatter.write_dl(rows)

    def main(  # type: ignore[override]
        self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any
    ) -> NoReturn:
        """Run, and end the process with the exit code."""
        words = list(sys.argv[1:] if args is None else args)
        try:
            # Click's own standalone mode would give its usage errors a form of their own.
            code = super().main(words, prog_name, **{**extra, "standalone_mode": False})
        except click.exceptions.Exit as exit_:
            code = exit_.exit_code
        except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the edge: each error becomes one sentence
            code = report(error, verbose="--verbose" in words)
        sys.exit(code if isinstance(code, int) else 0)


def report(error: BaseException, *, verbose: bool) -> int:
    """Write one sentence about the error to standard error and return the exit code."""
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        return 130
    if isinstance(error, BrokenPipeError):
        # Whoever read our output has seen enough; the interpreter must not complain at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    if verbose:
        import traceback

        traceback.print_exception(error)
    if isinstance(error, BelvedereError):
        click.echo(f"error: {error}", err=True)
        return error.exit_code
    if isinstance(error, click.ClickException):
        hint = f" (see `{error.ctx.command_path} --help`)" if isinstance(error, click.UsageError) and error.ctx else ""
        click.echo(f"error: {error.format_message().rstrip('.')}{hint}", err=True)
        return error.exit_code
    if isinstance(error, OSError) and error.filename is not None:
        # The machine's answer about a file that somebody named: no defect of ours.
        click.echo(f"error: {os.fsdecode(error.filename)}: {error.strerror}", err=True)
        return EXIT_OF_ERRNO.get(error.errno or 0, 1)
    click.echo(
        f"error: {type(error).__name__}: {error}; this is a defect in Belvedere, `--verbose` shows where", err=True
    )
    return 1


def first_sentence(target: str) -> str:
    """Return the first docstring line of the function behind `module:attribute`, without importing it."""
    module, _, attribute = target.partition(":")
    try:
        path = _source_of(module)
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name == attribute:
                return (ast.get_docstring(node) or "").partition("\n")[0]
    except (OSError, SyntaxError, ImportError):
        pass
    return "(cannot be loaded)"


def _source_of(module: str) -> Path:
    package, *rest = module.split(".")
    spec = importlib.util.find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        raise ImportError(f"no package {package}")
    root = Path(next(iter(spec.submodule_search_locations)))
    file = root.joinpath(*rest).with_suffix(".py")
    return file if file.exists() else root.joinpath(*rest, "__init__.py")


def _unknown_verb(word: str, verbs: Sequence[str]) -> str:
    from difflib import get_close_matches

    near = get_close_matches(word, verbs, n=1)
    meant = f"did you mean `belvedere {near[0]}`?" if near else "`belvedere --help` lists the verbs"
    return f"there is no verb {word!r}: {meant}"


@click.group(
    cls=VerbGroup,
    name="belvedere",
    epilog=EXIT_CODES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@store_option
@artifacts_option
@namespace_option
@verbose_option
def cli(namespace: str) -> None:
    """Train, compile, serve and safely replace vision-language models.

    The same files work with `belvedere apply -f` on one machine and with `kubectl apply -f` on a cluster.
    """


def main() -> NoReturn:
    """Enter from the console."""
    cli.main(prog_name="kubectl belvedere" if called_as_kubectl_plugin() else "belvedere")


if __name__ == "__main__":
    main()
