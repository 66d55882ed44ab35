"""The images of a bare node, without a registry: OCI archives of a few files each, made from what was built or unpacked.

What an image of Belvedere would hold in layers of several gigabytes (the userland, Python, the virtual environment, the
checkout), the container runtime gives every container instead, read-only and at the machine's own paths; so pods need no
volume for it, and their manifests are the ones that users' clusters get.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import resource
import sys
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from belvedere_platform.errors import InvalidInput

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
USER_ID = 65532
HOME = "/home/belvedere"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
# A pod may mount a folder of its own over these, and what lies beneath would be gone.
COVERED_BY_PODS = ("/tmp", "/run", "/var/run", "/dev", HOME)


@dataclass(frozen=True, kw_only=True)
class Image:
    """One image: its name, files by their path in it, and how it starts."""

    name: str
    files: Mapping[str, Path]
    entrypoint: tuple[str, ...]
    # Links into the machine's /usr, which dynamically linked programs need.
    userland: bool = False
    user: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)


def shared_folders(checkout: Path, triton: Path) -> list[Path]:
    """Return the folders of the machine that every container sees. Raises InvalidInput for one that pods would cover."""
    wanted = [Path("/usr"), Path("/etc/alternatives"), Path(sys.base_prefix), checkout, Path(sys.prefix), triton]
    folders: list[Path] = []
    for folder in (each.resolve() for each in wanted if each.exists()):
        if any(folder.is_relative_to(covered) for covered in COVERED_BY_PODS):
            raise InvalidInput(
                f"{folder} is needed in every container, and pods mount folders of their own over "
                f"{', '.join(COVERED_BY_PODS)}: use a checkout and a Python elsewhere"
            )
        if not any(folder.is_relative_to(other) for other in folders):
            folders.append(folder)
    return folders


def with_shared_folders(container: dict[str, Any], folders: Iterable[Path]) -> dict[str, Any]:
    """Return the runtime's standard container with the folders mounted read-only."""
    mounts = [
        {"destination": str(folder), "type": "bind", "source": str(folder), "options": ["bind", "ro", "nosuid"]}
        for folder in folders
    ]
    # As many open files as this process may have: raising a limit takes a privilege that root may lack in a container.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limits = [{"type": "RLIMIT_NOFILE", "hard": hard, "soft": hard}]
    return {**container, "process": {**container["process"], "rlimits": limits}, "mounts": container["mounts"] + mounts}


def write_archive(path: Path, images: Iterable[Image]) -> None:
    """Write images as one OCI archive, uncompressed: it is read once, by the runtime beside it."""
    manifests = []
    written: set[str] = set()
    with tarfile.open(path, "w") as archive:

        def add(content: bytes, media_type: str) -> dict[str, Any]:
            digest = hashlib.sha256(content).hexdigest()
            if digest not in written:
                written.add(digest)
                _add_bytes(archive, f"blobs/sha256/{digest}", content)
            return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}

        for image in images:
            layer = add(_layer(image), "application/vnd.oci.image.layer.v1.tar")
            config = add(_config(image, layer["digest"]), "application/vnd.oci.image.config.v1+json")
            manifest = {"schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": config, "layers": [layer]}
            entry = add(json.dumps(manifest).encode(), MANIFEST_TYPE)
            manifests.append({**entry, "annotations": {"io.containerd.image.name": image.name}})
        _add_bytes(archive, "oci-layout", b'{"imageLayoutVersion": "1.0.0"}')
        _add_bytes(archive, "index.json", json.dumps({"schemaVersion": 2, "manifests": manifests}).encode())


def _config(image: Image, layer_digest: str) -> bytes:
    paths = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    environment = {"PATH": paths, **image.environment}
    return json.dumps(
        {
            "architecture": ARCHITECTURES.get(platform.machine(), platform.machine()),
            "os": "linux",
            "config": {
                "Entrypoint": list(image.entrypoint),
                "User": image.user,
                "Env": [f"{name}={value}" for name, value in environment.items()],
            },
            "rootfs": {"type": "layers", "diff_ids": [layer_digest]},
        }
    ).encode()


def _layer(image: Image) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as layer:
        made: set[str] = set()
        for name, mode in (("tmp", 0o1777), ("etc", 0o755), (HOME[1:], 0o777)):
            _add_folder(layer, name, mode, made)
        for name, text in _accounts().items():
            _add_bytes(layer, name, text.encode())
        for target, source in image.files.items():
            _add_folder(layer, str(PurePosixPath(target[1:]).parent), 0o755, made)
            _add_bytes(layer, target[1:], source.read_bytes(), mode=0o755)
        for name in ("bin", "sbin", "lib", "lib32", "lib64") if image.userland else ():
            machine = Path("/", name)
            if name not in made and machine.is_symlink():
                _add_link(layer, name, os.readlink(machine))
    return content.getvalue()


def _accounts() -> dict[str, str]:
    users = {"root": (0, "/root"), "nobody": (65534, "/"), "belvedere": (USER_ID, HOME)}
    return {
        "etc/passwd": "".join(
            f"{name}:x:{number}:{number}::{home}:/bin/sh\n" for name, (number, home) in users.items()
        ),
        "etc/group": "".join(f"{name}:x:{number}:\n" for name, (number, _) in users.items()),
        "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
    }


def _add_folder(archive: tarfile.TarFile, name: str, mode: int, made: set[str]) -> None:
    if name in made or name == ".":
        return
    _add_folder(archive, str(PurePosixPath(name).parent), 0o755, made)
    made.add(name)
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode = tarfile.DIRTYPE, mode
    archive.addfile(entry)


def _add_bytes(archive: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    archive.addfile(entry, io.BytesIO(content))


def _add_link(archive: tarfile.TarFile, name: str, target: str) -> None:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = tarfile.SYMTYPE, target
    archive.addfile(entry)
