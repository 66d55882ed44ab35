"""Where the time of one request went, as the header of the answer tells it."""

from __future__ import annotations

from dataclasses import dataclass

SERVER_TIMING = "server-timing"
"""W3C Server Timing: browsers, and whoever reads the header, see the stages in milliseconds."""


@dataclass(kw_only=True)
class Timing:
    """Seconds in each stage of one request; filled in on its way."""

    preprocess_seconds: float = 0.0
    queue_seconds: float = 0.0
    model_seconds: float = 0.0
    postprocess_seconds: float = 0.0

    def add_run(self, *, queue_seconds: float, model_seconds: float) -> None:
        """Note a part of the request that was run. Parts wait beside each other and run one after the other."""
        self.queue_seconds = max(self.queue_seconds, queue_seconds)
        self.model_seconds += model_seconds

    def stages(self) -> dict[str, float]:
        """Return the seconds by stage, in order."""
        return {
            "pre": self.preprocess_seconds,
            "queue": self.queue_seconds,
            "model": self.model_seconds,
            "post": self.postprocess_seconds,
        }

    def header(self) -> str:
        """Return the value of the Server-Timing header."""
        return ", ".join(f"{name};dur={1000 * seconds:.3f}" for name, seconds in self.stages().items())
