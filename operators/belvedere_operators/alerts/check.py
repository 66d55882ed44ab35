"""Check with promtool the alert rules of every ModelService among the examples: python -m belvedere_operators.alerts.check [DIR]."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from belvedere_operators.executors.prometheus_rule import check_rules, rule_file
from belvedere_operators.manifests.prometheusrule import prometheus_rule
from belvedere_platform.errors import BelvedereError, NotFound
from belvedere_platform.resources import ModelService
from belvedere_platform.store import Manifest


def model_services(directory: Path) -> list[Manifest]:
    """Return the ModelServices of all YAML files below a directory. Raises NotFound when there are none."""
    files = sorted(directory.rglob("*.yaml"))
    manifests = [manifest for file in files for manifest in yaml.safe_load_all(file.read_text()) if manifest]
    found = [manifest for manifest in manifests if manifest.get("kind") == "ModelService"]
    if not found:
        raise NotFound(f"{directory} has no ModelService to check")
    return found


async def check(services: Sequence[Manifest]) -> None:
    """Have promtool check the rules of each. Raises InvalidInput with what it says."""
    for service in services:
        await check_rules(rule_file(rules_for(service)))


def rules_for(manifest: Manifest) -> Manifest:
    """Return the PrometheusRule of a service in the middle of a rollout, when it has the most rules."""
    owner = {**manifest, "metadata": {"namespace": "default", "uid": "0", **manifest["metadata"]}}
    spec = ModelService.model_validate(manifest).spec
    return prometheus_rule(owner, spec, stable="stable", candidate=spec.version)


if __name__ == "__main__":
    try:
        examples = model_services(Path(*sys.argv[1:] or ["deploy/examples"]))
        asyncio.run(check(examples))
    except BelvedereError as error:
        sys.exit(str(error))
    print(f"promtool accepts the rules of {len(examples)} ModelServices")
