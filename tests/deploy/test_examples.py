"""Every example is accepted as it stands."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from belvedere_platform.resources.validation import admit

EXAMPLES = sorted((Path(__file__).parents[2] / "deploy" / "examples").rglob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=[path.stem for path in EXAMPLES])
def test_an_example_is_valid(path: Path) -> None:
    manifests = [one for one in yaml.safe_load_all(path.read_text()) if one]
    assert manifests
    for manifest in manifests:
        admit(manifest)
