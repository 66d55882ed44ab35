"""Which artifacts are still needed. Pure.

Belvedere gives the tags models/, runs/ and engines/ itself, so they keep an artifact only as long as an object refers to it.
Every other tag was given by a person or is a data set, and keeps its artifact.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from belvedere_platform.artifacts.layout import Descriptor

OWN_TAGS = ("models/*", "runs/*", "engines/*")


def references(objects: Iterable[Mapping[str, Any]]) -> set[str]:
    """Return every tag pattern and digest that objects refer to."""
    found: set[str] = set()
    for manifest in objects:
        metadata, spec, status = manifest["metadata"], manifest["spec"], manifest.get("status") or {}
        if manifest["kind"] == "TrainingRun":
            dataset = spec["data"]["dataset"]
            found.add(dataset if dataset.startswith("sha256:") else f"datasets/{dataset}")
            found.add(f"runs/{metadata['namespace']}/{metadata['name']}/*")
        elif manifest["kind"] == "ModelVersion":
            found.add(spec["digest"])
            found.add(spec.get("lineage", {}).get("dataDigest") or spec["digest"])
        if status.get("digest"):
            found.add(status["digest"])
    return found


def needed(
    artifacts: Iterable[Descriptor],
    objects: Iterable[Mapping[str, Any]],
    *,
    built_from: Mapping[str, str],
    keep_tags: Iterable[str] = (),
) -> set[str]:
    """Return the digests to keep. `built_from` is the model of each engine: an engine is kept while its model is referred to."""
    referred, patterns = references(objects), tuple(keep_tags)

    def wanted(one: Descriptor) -> bool:
        if one.digest in referred or built_from.get(one.digest) in referred:
            return True
        return any(
            _matches(tag, patterns) or _matches(tag, referred) or not _matches(tag, OWN_TAGS) for tag in one.tags
        )

    return {one.digest for one in artifacts if wanted(one)}


def reachable(known: Mapping[str, Descriptor], keep: Iterable[str]) -> set[str]:
    """Return the digests of what is kept, by tag or digest, and of what that was made for."""
    by_tag = {tag: one.digest for one in known.values() for tag in one.tags}
    kept: set[str] = set()
    pending = [by_tag.get(reference, reference) for reference in keep]
    while pending:
        digest = pending.pop()
        if digest in known and digest not in kept:
            kept.add(digest)
            if (subject := known[digest].subject) is not None:
                pending.append(subject)
    return kept


def _matches(tag: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(tag, pattern) for pattern in patterns)
