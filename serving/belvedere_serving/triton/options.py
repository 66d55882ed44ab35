"""How a Triton repository is laid out and tuned: the same choices as the Ray Serve server's, and Triton's own."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

EngineBackend = Literal["python", "onnxruntime", "tensorrt", "openvino"]
BACKENDS: tuple[EngineBackend, ...] = ("python", "onnxruntime", "tensorrt", "openvino")
_NUMBERED = re.compile(r".*-v([1-9][0-9]{0,8})")


@dataclass(frozen=True, kw_only=True)
class RepositoryOptions:
    """What the configuration files say.

    `backend`: what runs the engine. `python` runs the code of the Ray Serve server and needs nothing else in Triton;
    the others are in the vendor's image.
    `response_cache`: off unless asked for. Triton 2.51 remembers the failure of an engine, and answers the same input
    without outputs from then on.
    """

    version: str
    backend: EngineBackend = "python"
    max_batch_size: int = 16
    batch_wait_milliseconds: float = 2
    max_queued_requests: int = 256
    request_timeout_seconds: float = 60
    instances: int = 1
    preprocess_instances: int = 1
    threads: int = 1
    response_cache: bool = False
    rate_limit: bool = True
    writing: Mapping[str, Any] = field(default_factory=dict)
    """How texts are written: fields of the server's own options by name."""

    @property
    def version_number(self) -> int:
        """Return the number that Triton has for this version."""
        return version_number(self.version)

    @property
    def max_rows_a_request(self) -> int:
        """How many inputs one request may have; the same as on the Ray Serve server."""
        return 4 * self.max_batch_size


def version_number(version: str) -> int:
    """Return a number for a ModelVersion's name, since Triton knows versions by number: N of `…-vN`, else one from its hash."""
    numbered = _NUMBERED.fullmatch(version)
    return int(numbered[1]) if numbered else zlib.crc32(version.encode()) % (1 << 31) + (1 << 31)
