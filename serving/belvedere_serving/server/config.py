"""What a model server is told: the arguments of its Ray Serve application."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from belvedere_platform.errors import InvalidInput
from belvedere_platform.resources.base import Digest
from belvedere_serving.server.waiting import BatchPolicy


class ModelOptions(BaseModel):
    """How the models of an engine are run, by whichever server: batches, queues, texts."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)

    version: str
    max_batch_size: Annotated[int, Field(ge=1, le=1024)] = 16
    batch_wait_milliseconds: Annotated[float, Field(ge=0, le=1000)] = 2
    max_queued_requests: Annotated[int, Field(ge=1, le=100_000)] = 256
    threads: Annotated[int, Field(ge=1, le=256)] = 1
    request_timeout_seconds: Annotated[float, Field(gt=0, le=3600)] = 60
    max_running_texts: Annotated[int, Field(ge=1, le=1024)] = 16
    max_new_tokens: Annotated[int | None, Field(ge=1, le=4096)] = None
    """Words of a text at most; without it as many as the model and the cache have room for."""
    cache_blocks: Annotated[int | None, Field(ge=1, le=1_000_000)] = None
    cache_block_size: Annotated[int, Field(ge=1, le=256)] = 16
    cache_precision: Literal["fp32", "int8"] = "fp32"
    feature_cache_mebibytes: Annotated[float, Field(ge=0, le=65536)] = 32

    @property
    def max_rows_a_request(self) -> int:
        """How many inputs one request may have."""
        return 4 * self.max_batch_size

    @property
    def max_rows_waiting(self) -> int:
        """How many inputs may wait for the engine; a lone request that is allowed at all always fits."""
        return max(self.max_queued_requests, self.max_rows_a_request)

    @property
    def batch_policy(self) -> BatchPolicy:
        """Return how requests are grouped."""
        return BatchPolicy(
            max_rows=self.max_batch_size,
            wait_seconds=self.batch_wait_milliseconds / 1000,
            max_waiting_rows=self.max_rows_waiting,
        )


class ServerConfig(ModelOptions):
    """One version of one service, and how its requests are grouped."""

    service: str
    namespace: str = "default"
    model: str
    engine_digest: Digest
    artifacts: str
    models: tuple[str, ...] = ()
    """Which of the engine's models to serve; all without any. Several applications share an engine's models so."""
    plugins: str = ""
    """A folder; see docs/serving.md. Without one there are none."""

    @classmethod
    def parse(cls, arguments: Mapping[str, Any]) -> ServerConfig:
        """Return the config in application arguments. Raises InvalidInput."""
        try:
            return cls.model_validate(dict(arguments))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise InvalidInput(f"argument {where} is {first['input']!r}: {first['msg']}") from error
