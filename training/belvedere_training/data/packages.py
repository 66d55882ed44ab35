"""Which npm packages hold the drawings and names, and how they come into the cache whole."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from belvedere_platform.errors import CorruptData, Unavailable

Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Package:
    """One npm package, pinned by version and by the sha512 of its tarball."""

    name: str
    version: str
    num_bytes: int
    sha512: str

    @property
    def file_name(self) -> str:
        """Return the name that `npm pack` gives the tarball."""
        return f"{self.name.lstrip('@').replace('/', '-')}-{self.version}.tgz"


def _pin(name: str, version: str, num_bytes: int, sha512: str) -> Package:
    return Package(name=name, version=version, num_bytes=num_bytes, sha512=sha512)


# fmt: off
PACKAGES: Mapping[str, Package] = {p.name: p for p in (
    _pin("@iconify-json/emojione-v1", "1.2.3", 3704153, "UjI2VQEXVtGlPBvQuxEizro7QCgBcJDOYwKUupquvvZ8UV4xOlvm45IU82JYWegiAWLerY79gFLMZ26U6Ms+ww=="),
    _pin("@iconify-json/emojione", "1.2.3", 687690, "T9+T3HIbJNLKKsmxYKlaYhvnHYkz/HNYTV7SHCXVZPfeUi4FqskY70YeN8yYAZT8cCv7w5vJxS4Q1m8zb9CMMg=="),
    _pin("@iconify-json/fluent-emoji-flat", "1.2.6", 1172438, "RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw=="),
    _pin("@iconify-json/fluent-emoji", "1.2.7", 14323330, "D8G6bKAyIsyxP1rzZtIWr/gg/fO4Rg1+DyCWlfqKK4h8W+4Em/Y0P6QYgJUQTlUcagzJvSyg+9OBv4hz4Hc/QA=="),
    _pin("@iconify-json/fxemoji", "1.2.2", 1034876, "UAasRaxzFUKfIGSmLwnoarsssA4LX0VLLuEmplIqM6ZNQqIQRtav8tZ4H1neTlBreXuMQyAifr5jP4kn78DpiQ=="),
    _pin("@iconify-json/noto-v1", "1.2.5", 1587591, "/DsVMius69Q0fRS53z7QK1TROSuar606jiIx+laXtdsYGMXpf6LtHBx6CGfoo3UHHb/XpBsw+1L1x3eyPqMuVA=="),
    _pin("@iconify-json/noto", "1.2.9", 3102958, "DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw=="),
    _pin("@iconify-json/openmoji", "1.2.29", 1264633, "vXdhkqcXVSO6suy+m9LbcUM3OdVyuNOtpV8/als/WqfkQIRxevL5Geb/g+6GH/Qwnq1OqksEmaDGTCmZ5nFKJQ=="),
    _pin("@iconify-json/twemoji", "1.2.5", 1555888, "uKpuIEV0v6K5BW3Mjdyl+XKFVAbbcPxAgifKvEMtZoUZB5+YiY5zaMm2uNNCxyXzAWU9yNLlj41WU6/mvgALsw=="),
    _pin("@lobehub/fluent-emoji-3d", "1.1.0", 15792027, "Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g=="),
    _pin("emojibase-data", "17.0.0", 6711091, "Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJkbgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljHsTygjA=="),
    _pin("fluentui-emoji", "1.3.0", 23804319, "JTXXwqIie2rWTgOkIJDJxr0WtwTz2WU4kdOq8buLVThYwQ264aFR2jdTyuon2oEbLqqGMT64zI4btyn1saB2xw=="),
    _pin("openmoji", "17.0.0", 4339458, "EBnYrNGdcdw+OSXmENeNE1yBNRu6tOraTmoOyUbJkTmvT/+XETp8RZLSJFzD3lrPc5N9CzsyPnRTk0Vp4UaI9w=="),
)}
# fmt: on


def cache_directory() -> Path:
    """Return the folder where downloads stay between runs: $BELVEDERE_CACHE or ~/.cache/belvedere."""
    return Path(os.environ.get("BELVEDERE_CACHE") or Path.home() / ".cache" / "belvedere")


def is_whole(path: Path, package: Package) -> bool:
    """Return whether the file has the pinned size and sha512."""
    if not path.is_file() or path.stat().st_size != package.num_bytes:
        return False
    with path.open("rb") as file:
        return base64.b64encode(hashlib.file_digest(file, "sha512").digest()).decode() == package.sha512


def fetch(packages: Iterable[Package], cache: Path, progress: Progress = lambda _: None) -> dict[str, Path]:
    """Return the tarball of each package by name, downloading those that are not whole in the cache."""
    packages = list(packages)
    folder = cache / "npm"
    folder.mkdir(parents=True, exist_ok=True)
    paths: dict[str, Path] = {}
    for number, package in enumerate(packages, start=1):
        path = folder / package.file_name
        if not is_whole(path, package):
            megabytes = package.num_bytes / 1e6
            progress(f"download {number}/{len(packages)}  {package.name}@{package.version}  {megabytes:.1f} MB")
            _download(package, path)
        paths[package.name] = path
    return paths


def _download(package: Package, path: Path) -> None:
    """Run `npm pack` beside the target and move the tarball there when its sha512 is right."""
    if shutil.which("npm") is None:
        raise Unavailable(
            f"npm is not installed, and {package.name}@{package.version} must be downloaded with it: "
            "install it (Debian: apt-get install npm) and run the command again; what is already downloaded is kept"
        )
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".partial-") as partial:
        command = ["npm", "pack", f"{package.name}@{package.version}", "--silent", "--pack-destination", partial]
        done = subprocess.run(command, cwd=partial, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            reason = (done.stderr or done.stdout).strip().splitlines()
            raise Unavailable(
                f"npm could not download {package.name}@{package.version}: {reason[-1] if reason else 'no reason given'}; "
                "check the network and run the command again, what is already downloaded is kept"
            )
        downloaded = Path(partial) / package.file_name
        if not is_whole(downloaded, package):
            raise CorruptData(
                f"{package.name}@{package.version} as downloaded is not the pinned file of {package.num_bytes} bytes "
                f"(sha512 {package.sha512[:16]}…): run the command again, or check the registry that npm uses"
            )
        downloaded.replace(path)


def members(tarball: Path, prefix: str, suffix: str = "") -> Iterator[tuple[str, bytes]]:
    """Yield (path inside the package, bytes) of the files below prefix, in the tarball's order."""
    with tarfile.open(tarball, "r:gz") as tar:
        for member in tar:
            name = member.name.split("/", 1)[-1]
            if member.isfile() and name.startswith(prefix) and name.endswith(suffix):
                file = tar.extractfile(member)
                assert file is not None
                yield name, file.read()
