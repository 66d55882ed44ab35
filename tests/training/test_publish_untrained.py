"""An untrained model is published with words and pictures of the drawn shapes, which are gone by then."""

from __future__ import annotations

import json
from typing import Any

import pytest

from belvedere_platform.artifacts import ArtifactStore
from belvedere_training import publish_untrained


def test_what_it_is_compared_on_is_read_while_the_drawings_are_there(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}

    def publish(store: Any, model: Any, tokenizer: Any, evidence: Any, publication: Any, *, tag: str) -> str:
        given.update(tokenizer=tokenizer, evidence=evidence, tag=tag)
        return "pushed"

    monkeypatch.setattr(publish_untrained, "publish", publish)
    store = ArtifactStore((tmp_path / "artifacts").as_uri())
    assert publish_untrained.untrained_model_artifact(store, "models/new") == "pushed"  # type: ignore[comparison-overlap]
    lines = [json.loads(line) for line in given["evidence"]["parity.jsonl"].splitlines()]
    assert {key for line in lines for key in line} == {"id", "text", "image"}
