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


def test_the_captioning_example_trains_what_its_service_lets_write() -> None:
    """Whatever the sizes and topologies become: the run's model can be served as a writer, and the service names it."""
    from belvedere_platform.resources.training_run import Objectives
    from belvedere_training.model.config import sized
    from belvedere_training.model.decoding import decodes
    from belvedere_training.objectives.multitask import check, needs_words

    folder = Path(__file__).parents[2] / "deploy" / "examples" / "captioning"
    run, service = (yaml.safe_load((folder / name).read_text()) for name in ("02-train.yaml", "03-service.yaml"))
    spec = run["spec"]
    model = sized(spec["size"], **spec["architecture"])
    objectives = Objectives.model_validate(spec["objectives"])
    check(objectives, model)
    assert needs_words(objectives), "without it the tokenizer has no end, and a text would never stop"
    assert decodes(model)
    assert (service["spec"]["model"], service["spec"]["version"]) == (spec["model"], run["metadata"]["name"])
