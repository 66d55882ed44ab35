"""What a bare node is decided from: archives of images, folders that containers share, control groups, addresses."""

from __future__ import annotations

import hashlib
import io
import ipaddress
import json
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from belvedere_platform.errors import InvalidInput
from cgroups import hierarchies
from images import Image, shared_folders, with_shared_folders, write_archive
from node_settings import LINKS, link_of

VERSION_1 = """\
24 1 0:21 / /sys/fs/cgroup rw shared:4 - tmpfs tmpfs rw,mode=755
25 24 0:22 / /sys/fs/cgroup/cpu,cpuacct rw shared:5 - cgroup cgroup rw,cpu,cpuacct
26 24 0:23 / /sys/fs/cgroup/systemd rw shared:6 - cgroup cgroup rw,xattr,name=systemd
27 24 0:24 / /sys/fs/cgroup/unified rw shared:7 - cgroup2 cgroup2 rw,nsdelegate
28 1 0:25 / /data rw shared:8 - ext4 /dev/vda rw,relatime
"""
VERSION_2 = "35 24 0:30 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n"


def read(archive: Path) -> dict[str, bytes]:
    """Return the regular files of an archive by name."""
    with tarfile.open(archive) as opened:
        members = [(member, opened.extractfile(member)) for member in opened]
        return {member.name: content.read() for member, content in members if content is not None}


def blob(files: dict[str, bytes], descriptor: dict[str, Any]) -> bytes:
    """Return what a descriptor means, having checked that it is that."""
    content = files["blobs/sha256/" + descriptor["digest"].removeprefix("sha256:")]
    assert "sha256:" + hashlib.sha256(content).hexdigest() == descriptor["digest"]
    assert len(content) == descriptor["size"]
    return content


def test_an_archive_holds_each_image_with_its_files_and_its_start(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\n")
    images = [
        Image(name="example.com/one:1", files={"/bin/one": program}, entrypoint=("/bin/one",)),
        Image(name="example.com/two:2", files={}, entrypoint=(), userland=True, user="65532", environment={"A": "b"}),
    ]
    write_archive(tmp_path / "archive.tar", images)
    files = read(tmp_path / "archive.tar")
    entries = json.loads(files["index.json"])["manifests"]
    assert [entry["annotations"]["io.containerd.image.name"] for entry in entries] == [image.name for image in images]
    for entry, image in zip(entries, images, strict=True):
        manifest = json.loads(blob(files, entry))
        config = json.loads(blob(files, manifest["config"]))
        (layer,) = manifest["layers"]
        assert config["rootfs"]["diff_ids"] == [layer["digest"]]
        assert tuple(config["config"]["Entrypoint"]) == image.entrypoint
        assert config["config"]["User"] == image.user
        with tarfile.open(fileobj=io.BytesIO(blob(files, layer))) as root:
            assert root.getmember("tmp").mode == 0o1777
            assert {name[1:] for name in image.files} <= set(root.getnames())
            links = {member.name for member in root if member.issym()}
        assert links == (machine_links() if image.userland else set())


def machine_links() -> set[str]:
    """Return which of the folders of programs are in /usr here."""
    return {name for name in ("bin", "sbin", "lib", "lib32", "lib64") if Path("/", name).is_symlink()}


def test_containers_share_no_folder_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkout = Path("/usr/share")
    monkeypatch.setattr(sys, "prefix", "/usr/share/environment")
    monkeypatch.setattr(sys, "base_prefix", "/usr")
    assert shared_folders(checkout, tmp_path / "absent") == [
        folder for folder in (Path("/usr"), Path("/etc/alternatives")) if folder.exists()
    ]


def test_a_checkout_that_pods_would_cover_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"^/tmp is needed in every container"):
        shared_folders(Path("/tmp"), Path("/usr"))


def test_shared_folders_are_read_only_and_the_rest_of_the_container_is_kept() -> None:
    standard: dict[str, Any] = {"process": {"cwd": "/", "rlimits": []}, "mounts": [{"destination": "/proc"}], "x": 1}
    made = with_shared_folders(standard, [Path("/usr")])
    assert made["x"] == 1
    assert made["process"]["cwd"] == "/"
    assert made["mounts"][0] == {"destination": "/proc"}
    assert "ro" in made["mounts"][1]["options"]
    assert standard["mounts"] == [{"destination": "/proc"}]


def test_the_hierarchies_of_a_machine_are_those_that_are_mounted() -> None:
    assert [(str(each.target), each.type, each.options) for each in hierarchies(VERSION_1)] == [
        ("/sys/fs/cgroup/cpu,cpuacct", "cgroup", "cpu,cpuacct"),
        ("/sys/fs/cgroup/systemd", "cgroup", "none,name=systemd"),
        ("/sys/fs/cgroup/unified", "cgroup2", "nsdelegate"),
    ]
    assert [(str(each.target), each.type) for each in hierarchies(VERSION_2)] == [("/sys/fs/cgroup", "cgroup2")]


@given(st.text())
def test_a_link_has_two_addresses_of_one_network_and_a_name_that_the_kernel_takes(instance: str) -> None:
    link = link_of(instance)
    network = ipaddress.ip_network(f"{link.machine_address}/{link.prefix_length}", strict=False)
    assert network.subnet_of(LINKS)
    assert {link.machine_address, link.node_address} == {str(host) for host in network.hosts()}
    assert len(link.interface) < 16
    assert link == link_of(instance)
