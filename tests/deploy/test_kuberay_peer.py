"""What the benchmark puts around the real KubeRay: names that resolve, and RayJobs like ours."""

from __future__ import annotations

import struct

from kuberay_peer import DASHBOARD, answer, ray_jobs


def question(name: str, kind: int) -> bytes:
    labels = b"".join(bytes([len(one)]) + one.encode() for one in name.split("."))
    return struct.pack("!HHHHHH", 7, 0x0100, 1, 0, 0, 0) + labels + b"\x00" + struct.pack("!HH", kind, 1)


def test_every_name_is_the_dashboards_and_has_no_other_address() -> None:
    asked = question("peer-1-head-svc.bench.svc.cluster.local", 1)
    told = answer(asked)
    assert struct.unpack("!HHHH", told[:8]) == (7, 0x8580, 1, 1)
    assert told[12 : len(asked)] == asked[12:]
    assert told[-4:] == bytes(map(int, DASHBOARD.split(".")))
    other = answer(question("peer-1-head-svc.bench.svc.cluster.local", 28))
    assert struct.unpack("!HHHH", other[:8]) == (7, 0x8580, 1, 0)


def test_the_peers_jobs_belong_to_nobody_and_are_placed() -> None:
    first, second = ray_jobs("bench", 2)
    assert first["metadata"]["name"] != second["metadata"]["name"]
    assert "ownerReferences" not in first["metadata"]
    cluster = second["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert group["template"]["spec"]["nodeName"] == "fake-1"
