"""The examples for the edge: they fit each other, the resources and the chart. Whether their own kinds take them: deploy/edge/validate.sh."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from belvedere_platform.resources import ModelService

ROOT = Path(__file__).parent.parent.parent
EDGE = ROOT / "deploy" / "edge"
CUT_OFF = {"node.kubernetes.io/unreachable", "node.kubernetes.io/not-ready"}


def read(name: str) -> Any:
    return yaml.safe_load((EDGE / name).read_text())


def test_the_service_is_placed_on_the_pool_and_stays_when_it_is_cut_off() -> None:
    pod = ModelService.model_validate(read("service.yaml")).spec.pod
    pool = read("openyurt/nodepool.yaml")["spec"]
    assert pod is not None
    assert pod.node_selector == pool["labels"] == read("kubeedge/nodegroup.yaml")["spec"]["matchLabels"]
    tolerated = {one.key for one in pod.tolerations}
    assert {taint["key"] for taint in pool["taints"]} <= tolerated
    forever = {one.key for one in pod.tolerations if one.toleration_seconds is None and one.effect == "NoExecute"}
    assert forever == CUT_OFF


def test_the_release_for_a_shop_puts_its_gateway_beside_the_models() -> None:
    helm = shutil.which("helm")
    if helm is None:
        pytest.skip("helm is not set up: deploy/setup/setup.sh --with-helm")
    command = [
        helm,
        "template",
        "shop-a",
        str(ROOT / "helm" / "belvedere"),
        "-n",
        "shop-a",
        "-f",
        str(EDGE / "values.yaml"),
    ]
    done = subprocess.run([*command, "--set", "artifacts.url=s3://b/p"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    found = [one for one in yaml.safe_load_all(done.stdout) if one and one["kind"] == "Deployment"]
    specs = {one["metadata"]["name"]: one["spec"]["template"]["spec"] for one in found}
    gateway, operator = specs["shop-a-belvedere-gateway"], specs["shop-a-belvedere-operator"]
    assert gateway["nodeSelector"] == read("service.yaml")["spec"]["pod"]["nodeSelector"]
    assert {one["key"] for one in gateway["tolerations"]} >= CUT_OFF
    assert "tolerations" not in operator
