"""`belvedere model`: make a ModelVersion of a model that no TrainingRun made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from belvedere_platform.cli.options import (
    FIELD_MANAGER,
    artifact_store,
    artifacts_option,
    namespace_option,
    object_store,
    output_option,
    run,
    store_option,
    verbose_option,
)


@click.group()
def model() -> None:
    """Bring models in from outside."""


@model.command(name="import")
@click.option(
    "--from", "source", required=True, metavar="REF|DIR", help="A tag or digest, or a directory of model files."
)
@click.option("--name", required=True, help="Name of the ModelVersion.")
@click.option("--model", "family", required=True, help="The model that the version belongs to.")
@click.option(
    "--waive-evaluation",
    "waived",
    required=True,
    metavar="REASON",
    help="Why it may exist without a passed evaluation.",
)
@namespace_option
@store_option
@artifacts_option
@output_option("table", "json", "yaml", "name")
@verbose_option
def import_(source: str, name: str, family: str, waived: str, namespace: str, output: str) -> None:
    """Make a ModelVersion for an artifact, with a recorded reason instead of an evaluation."""
    from belvedere_platform.cli.rendering import emit

    artifact = _artifact(source, name, family)
    manifest = model_version(artifact, artifact_store().config(artifact.digest), name, family, waived, namespace)
    applied = run(_create(manifest))
    artifact_store().tag(artifact.digest, f"models/{name}")
    if output in ("json", "yaml"):
        emit(applied, output)
    else:
        click.echo(f"modelversion/{name}" + (f" created from {artifact.digest}" if output == "table" else ""))


def _artifact(source: str, name: str, family: str) -> Any:
    from belvedere_platform.cli.artifact import push_directory
    from belvedere_platform.errors import InvalidInput

    directory = Path(source)
    if directory.is_dir():
        return push_directory(directory, "model", None, {"model": family, "version": name})
    found = artifact_store().resolve(source)
    if found.kind != "model":
        raise InvalidInput(f"--from {source} is the artifact of a {found.kind.value}; it must be one of a model")
    return found


def model_version(
    artifact: Any, config: dict[str, Any], name: str, family: str, waived: str, namespace: str
) -> dict[str, Any]:
    """Return the ModelVersion of an imported artifact. Its metrics and lineage are what the artifact says."""
    from belvedere_platform.store.kinds import MODEL_VERSION

    known = config.get("lineage", {})
    lineage = {key: known[key] for key in ("dataDigest", "configDigest") if known.get(key)}
    return {
        "apiVersion": MODEL_VERSION.api_version,
        "kind": MODEL_VERSION.kind,
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {"belvedere.dev/version": name, "app.kubernetes.io/managed-by": "belvedere"},
        },
        "spec": {
            "model": family,
            "digest": artifact.digest,
            "lineage": lineage,
            "evaluation": {"passed": False, "waived": waived},
            "metrics": config.get("metrics", {}),
        },
    }


async def _create(manifest: dict[str, Any]) -> dict[str, Any]:
    from belvedere_platform.errors import Conflict, NotFound
    from belvedere_platform.store.kinds import MODEL_VERSION

    metadata = manifest["metadata"]
    async with object_store() as store:
        try:
            there = await store.get(MODEL_VERSION, metadata["name"], metadata["namespace"])
        except NotFound:
            there = None
        if there is not None and there["spec"]["digest"] != manifest["spec"]["digest"]:
            raise Conflict(
                f"ModelVersion {metadata['name']} exists with {there['spec']['digest']}; "
                "a ModelVersion is immutable: choose another --name"
            )
        return there or await store.apply(manifest, field_manager=FIELD_MANAGER)
