"""Check with promtool the alert rules of every ModelService among the examples: python -m belvedere_operators.alerts.check [DIR]."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import yaml

from belvedere_operators.executors.prometheus_rule import check_rules, rule_file
from belvedere_operators.manifests.prometheusrule import prometheus_rule
from belvedere_platform.errors import BelvedereError, NotFound
from belvedere_platform.resources import ModelService
from belvedere_platform.store import Manifest


async def check(directory: Path) -> int:
    """Return how many ModelServices were checked. Raises InvalidInput with what promtool says."""
    count = 0
    for file in sorted(directory.rglob("*.yaml")):
        for manifest in yaml.safe_load_all(file.read_text()):
            if manifest and manifest.get("kind") == "ModelService":
                await check_rules(rule_file(rules_for(manifest)))
                count += 1
    if not count:
        raise NotFound(f"{directory} has no ModelService to check")
    return count


def rules_for(manifest: Manifest) -> Manifest:
    """Return the PrometheusRule of a service in the middle of a rollout, when it has the most rules."""
    owner = {**manifest, "metadata": {"namespace": "default", "uid": "0", **manifest["metadata"]}}
    spec = ModelService.model_validate(manifest).spec
    return prometheus_rule(owner, spec, stable="stable", candidate=spec.version)


if __name__ == "__main__":
    try:
        print(
            f"promtool accepts the rules of {asyncio.run(check(Path(*sys.argv[1:] or ['deploy/examples'])))} ModelServices"
        )
    except BelvedereError as error:
        sys.exit(str(error))
