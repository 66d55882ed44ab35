"""`belvedere doctor`: what is installed, what this machine can do, and what to type for what is missing."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import click

from belvedere_platform.cli.options import home_option, output_option, settings, verbose_option
from belvedere_platform.errors import Unavailable


@click.command()
@click.option(
    "--measure/--no-measure", default=True, show_default=True, help="Time number formats and threads (seconds)."
)
@output_option("table", "json")
@home_option
@verbose_option
def doctor(measure: bool, output: str) -> None:
    """Say what is installed, what this machine can do, and what to type for what is missing.

    Ends with exit code 5 when something that is needed is missing.
    """
    from belvedere_operators.controlplane.diagnosis import Finding, diagnose

    cache = Path(os.environ.get("BELVEDERE_CACHE", "~/.cache/belvedere")).expanduser()
    findings: list[Finding] = []
    for finding in diagnose(settings().home, cache=cache, measure=measure):
        findings.append(finding)
        if output == "table":
            _print(finding)
    missing = [finding.subject for finding in findings if finding.needed and not finding.well]
    if output == "json":
        click.echo(json.dumps({"well": not missing, "findings": [asdict(finding) for finding in findings]}, indent=2))
    if missing:
        raise Unavailable(f"needed, and missing or not usable: {', '.join(missing)}")


def _print(finding: object) -> None:
    from belvedere_operators.controlplane.diagnosis import Finding

    assert isinstance(finding, Finding)
    mark, colour = ("✓", "green") if finding.well else ("✗", "red") if finding.needed else ("!", "yellow")
    click.echo(f"{click.style(mark, fg=colour)} {finding.subject:<14} {finding.found}")
    if finding.hint:
        click.echo(f"  {'':<14} → {finding.hint}")
