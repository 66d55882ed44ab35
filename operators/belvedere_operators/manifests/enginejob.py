"""The Job that builds an Engine: `belvedere engine build` with everything it must know on its command line."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from belvedere_operators.manifests.naming import LONGEST_JOB, child_name
from belvedere_operators.manifests.ownership import MANAGED_BY, VERSION_LABEL, owner_reference
from belvedere_operators.manifests.pods import PodSettings, env_list, pod_template
from belvedere_operators.manifests.raycluster import GPU
from belvedere_platform.artifacts.layout import canonical
from belvedere_platform.resources.engine import EngineSpec, ParityGate
from belvedere_platform.store import Manifest
from belvedere_platform.store.kinds import ENGINE, JOB

ENGINE_LABEL = "belvedere.dev/engine"


def engine_job_name(engine: str, gate: ParityGate) -> str:
    """Return the name of the Job that builds an Engine for a gate: the gate has a word in how int8 is made."""
    mark = hashlib.sha256(gate.model_dump_json().encode()).hexdigest()[:6]
    return child_name(engine, f"build-{mark}", longest=LONGEST_JOB)


def engine_tag(spec: EngineSpec, *, model_digest: str, toolchain_digest: str) -> str:
    """Return the tag of the engine artifact: everything that decides its bytes, so equal keys share one engine."""
    model = model_digest.removeprefix("sha256:")[:12]
    return f"engines/{model}-{spec.target.runtime}-{spec.target.precision}-{toolchain_digest}{_place(spec)}"


def _place(spec: EngineSpec) -> str:
    """Return what tells one device or image from another that an Engine asks to be built on; empty where it asks for none.

    A plan of one kind of GPU is none of another's, and int8 is made otherwise where a processor has instructions for it.
    """
    asked = spec.pod.model_dump(include={"image", "node_selector", "runtime_class_name"}, exclude_defaults=True)
    if spec.target.device != "cpu":
        asked["device"] = spec.target.device
    return f"-{hashlib.sha256(canonical(asked)).hexdigest()[:6]}" if asked else ""


def engine_job(
    spec: EngineSpec,
    *,
    metadata: Mapping[str, Any],
    model_digest: str,
    tag: str,
    pods: PodSettings,
) -> Manifest:
    """Return the Job that builds an Engine and pushes it under the tag."""
    labels = {
        ENGINE_LABEL: metadata["name"],
        VERSION_LABEL: spec.model_version,
        **MANAGED_BY,
    }
    container = {
        "name": "build",
        "command": ["belvedere"],
        "args": _arguments(spec, model_digest, tag),
        "env": env_list(pods.environment),
        **({"resources": {"requests": {GPU: "1"}, "limits": {GPU: "1"}}} if spec.target.device == "gpu" else {}),
    }
    return {
        "apiVersion": JOB.api_version,
        "kind": JOB.kind,
        "metadata": {
            "name": engine_job_name(metadata["name"], spec.parity),
            "namespace": metadata["namespace"],
            "labels": labels,
            "ownerReferences": [
                owner_reference({"apiVersion": ENGINE.api_version, "kind": ENGINE.kind, "metadata": metadata})
            ],
        },
        "spec": {
            "backoffLimit": 1,
            "template": pod_template(
                container,
                duty="engines",
                pods=pods,
                patch=spec.pod,
                labels=labels,
                spec={"restartPolicy": "Never"},
            ),
        },
    }


def _arguments(spec: EngineSpec, model_digest: str, tag: str) -> list[str]:
    """Return what `belvedere` is told to build."""
    return [
        *("engine", "build"),
        *("--model-digest", model_digest),
        *("--runtime", spec.target.runtime),
        *("--precision", spec.target.precision),
        *(("--device", spec.target.device) if spec.target.device != "cpu" else ()),
        *("--parity-cosine-minimum", f"{spec.parity.cosine_minimum:g}"),
        *("--parity-top1-minimum", f"{spec.parity.top1_agreement_minimum:g}"),
        *("--tag", tag),
    ]
