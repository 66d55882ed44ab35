"""The versions of what builds engines, out of a file of pinned requirements, as JSON: toolchain.py LOCK."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

PACKAGES = ("onnx", "onnxruntime", "onnxscript", "openvino", "torch")


def toolchain(lock: str) -> dict[str, str]:
    """Return version by package. Raises KeyError for one that is not pinned."""
    pins = dict(re.findall(r"^([a-z0-9-]+)==([^ ;\\]+)", lock, re.MULTILINE))
    return {name: pins[name] for name in PACKAGES}


if __name__ == "__main__":
    print(json.dumps(toolchain(Path(sys.argv[1]).read_text())))
