"""The group itself: verbs found by name, help without imports, errors as one sentence, exit codes."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import click
import pytest

from belvedere_platform import errors
from belvedere_platform.cli import main as main_module
from belvedere_platform.cli.main import COMMANDS, EXIT_CODES, cli, first_sentence, report
from belvedere_platform.cli.options import settings


def brought(monkeypatch: pytest.MonkeyPatch, **verbs: str) -> None:
    found = [EntryPoint(name=name, value=value, group="belvedere.commands") for name, value in verbs.items()]
    monkeypatch.setattr(main_module, "entry_points", lambda group: found)


def test_help_lists_every_verb_with_its_sentence(terminal: Any) -> None:
    text = terminal.out("--help")
    for name, target in COMMANDS.items():
        assert f"\n  {name} " in text
        assert first_sentence(target).split()[0] in text
    assert "rejected: evaluation, parity or rollout gate" in text


def test_help_imports_no_heavy_module() -> None:
    code = (
        "import sys; from belvedere_platform.cli.main import cli\n"
        "try: cli.main(['--help'], 'belvedere')\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'ray', 'pydantic', 'yaml', 'fsspec', 'kubernetes', 'celpy', 'numpy', 'httpx', 'sqlite3'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"


def test_a_verb_that_is_broken_leaves_the_others_alone(terminal: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    brought(monkeypatch, missing="no_such_package.commands:verb", nameless="belvedere_platform.errors:verb")
    assert "(cannot be loaded)" in terminal.out("--help")
    assert "`belvedere missing` cannot be loaded" in terminal.error(5, "missing")
    assert "`belvedere nameless` cannot be loaded" in terminal.error(5, "nameless", "--help")
    assert terminal.out("version").startswith("PART")


def test_an_unknown_verb_and_option(terminal: Any) -> None:
    assert terminal.error(2, "gte") == "there is no verb 'gte': did you mean `belvedere get`?"
    assert "lists the verbs" in terminal.error(2, "xyzzy")
    assert "No such option" in terminal.error(2, "get", "trun", "--nonsense")
    assert "Missing argument 'KIND'" in terminal.error(2, "get")


@pytest.mark.parametrize(
    "error",
    [errors.BelvedereError, errors.InvalidInput, errors.NotFound, errors.Conflict, errors.Unavailable, errors.Rejected, errors.CorruptData],
)  # fmt: skip
def test_exit_codes_are_those_of_the_errors(
    error: type[errors.BelvedereError], capsys: pytest.CaptureFixture[str]
) -> None:
    assert report(error("what, why and what to do"), verbose=False) == error.exit_code
    assert capsys.readouterr().err == "error: what, why and what to do\n"
    assert f"  {error.exit_code}  " in EXIT_CODES


def test_a_defect_is_called_one_and_verbose_shows_where(capsys: pytest.CaptureFixture[str]) -> None:
    assert report(ZeroDivisionError("division by zero"), verbose=False) == 1
    assert "is a defect in Belvedere" in capsys.readouterr().err
    try:
        raise ZeroDivisionError("again")
    except ZeroDivisionError as error:
        report(error, verbose=True)
    assert "Traceback" in capsys.readouterr().err
    assert report(KeyboardInterrupt(), verbose=False) == 130


@pytest.mark.parametrize(("number", "code"), [(errno.EACCES, 1), (errno.ENOENT, 3), (errno.ENOSPC, 7)])
def test_a_file_that_cannot_be_had_is_no_defect(number: int, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert report(OSError(number, os.strerror(number), "/some/file"), verbose=False) == code
    assert capsys.readouterr().err == f"error: /some/file: {os.strerror(number)}\n"


def read_settings(*words: str, environment: dict[str, str] | None = None, name: str = "belvedere") -> dict[str, str]:
    """Run a verb that prints its settings, in a process of its own."""
    code = (
        "import json, sys, click\n"
        "from belvedere_platform.cli.main import cli\n"
        "from belvedere_platform.cli import options\n"
        "@cli.command()\n@options.namespace_option\n@options.store_option\n@options.artifacts_option\n"
        "def probe(namespace):\n"
        "    found = options.settings(); assert namespace == found.namespace\n"
        "    click.echo(json.dumps({k: str(v) for k, v in vars(found).items()}))\n"
        f"sys.argv[0] = '/usr/bin/{name}'\n"
        "cli.main(sys.argv[1:], 'belvedere')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True, text=True, check=True, env={"HOME": "/home/someone", "PATH": "/bin", **(environment or {})},
    )  # fmt: skip
    found: dict[str, str] = json.loads(done.stdout)
    return found


def test_options_work_before_and_after_the_verb() -> None:
    words = ("--home", "/a", "-n", "team")
    before = read_settings(*words, "probe")
    assert before == read_settings("probe", *words)
    assert read_settings("--artifacts", "s3://b", "probe") == read_settings("probe", "--artifacts", "s3://b")
    assert (before["home"], before["store_url"], before["namespace"]) == ("/a", "sqlite:////a/store.db", "team")
    assert before["artifacts_url"] == "file:///a/artifacts"


def test_environment_and_defaults() -> None:
    assert read_settings("probe")["home"] == "/home/someone/.belvedere"
    environment = {"BELVEDERE_HOME": "/b", "BELVEDERE_STORE": "kubernetes://", "BELVEDERE_ARTIFACTS": "s3://bucket"}
    found = read_settings("probe", environment=environment)
    assert (found["store_url"], found["artifacts_url"]) == ("kubernetes://", "s3://bucket")
    given = read_settings("probe", "--home", "/c", environment=environment)
    assert (given["store_url"], given["artifacts_url"]) == ("sqlite:////c/store.db", "file:///c/artifacts")
    assert read_settings("probe", name="kubectl-belvedere")["store_url"] == "kubernetes://"


def test_explain_completion_and_version(terminal: Any) -> None:
    assert "percent of requests for the candidate" in terminal.out("explain", "modelservice.spec.rollout.steps")
    assert "has no field 'stesp'" in terminal.error(2, "explain", "modelservice.spec.rollout.stesp")
    for shell in ("bash", "zsh", "fish"):
        assert "_BELVEDERE_COMPLETE" in terminal.out("completion", shell)
    assert set(terminal.json("version")) >= {"belvedere", "python", "ray"}


def test_the_surface_is_what_it_was() -> None:
    """Verbs and their options, frozen: a change here is a change for users."""
    context = click.Context(cli)
    options = {
        name: sorted(option for parameter in command.params for option in parameter.opts if option.startswith("--"))
        for name in COMMANDS
        if (command := cli.get_command(context, name)) is not None
    }
    assert options["get"] == [
        "--all-namespaces",
        "--home",
        "--namespace",
        "--output",
        "--selector",
        "--store",
        "--verbose",
        "--watch",
    ]
    assert options["apply"] == ["--dry-run", "--filename", "--home", "--namespace", "--output", "--store", "--verbose"]
    assert options["logs"] == ["--follow", "--home", "--namespace", "--store", "--tail", "--verbose"]
    assert options["wait"] == ["--for", "--home", "--namespace", "--store", "--timeout", "--verbose"]
    assert sorted(COMMANDS) == [
        "apply", "artifact", "completion", "delete", "describe", "explain", "get", "lineage", "logs", "model", "version", "wait",
    ]  # fmt: skip
    assert callable(settings)
    assert Path(main_module.__file__).name == "main.py"


def test_every_verb_and_exit_code_is_in_the_documentation() -> None:
    text = (Path(__file__).parents[3] / "docs/cli.md").read_text(encoding="utf-8")
    for verb in COMMANDS:
        assert f"`{verb}" in text or f"belvedere {verb}" in text or verb == "version", verb
    for line in EXIT_CODES.splitlines()[2:]:
        assert f"| {line.split()[0]} |" in text, line
