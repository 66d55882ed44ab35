"""The PrometheusRule of a ModelService."""

from __future__ import annotations

from belvedere_operators.alerts.rules import Subject, evaluation_seconds, rules_of
from belvedere_operators.manifests.ownership import child_metadata, service_labels
from belvedere_platform.resources.model_service import ModelServiceSpec
from belvedere_platform.store import Manifest
from belvedere_platform.store.kinds import PROMETHEUS_RULE


def rule_name(service: str) -> str:
    """Return the name of the PrometheusRule of a service."""
    return f"{service}-slo"


def prometheus_rule(owner: Manifest, spec: ModelServiceSpec, *, stable: str, candidate: str | None = None) -> Manifest:
    """Return the alert rules of a service with these versions on its two sides."""
    service, namespace = owner["metadata"]["name"], owner["metadata"]["namespace"]
    subject = Subject(namespace=namespace, service=service, stable=stable, candidate=candidate)
    group = {
        "name": f"belvedere.{namespace}.{service}",
        "interval": f"{round(evaluation_seconds(spec))}s",
        "rules": rules_of(subject, spec),
    }
    return {
        "apiVersion": PROMETHEUS_RULE.api_version,
        "kind": PROMETHEUS_RULE.kind,
        "metadata": child_metadata(owner, rule_name(service), service_labels(service)),
        "spec": {"groups": [group]},
    }
