"""What is said of a plugin: one file `NAME.json` in the folder of plugins."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from belvedere_platform.errors import InvalidInput

SERVICE = "belvedere.plugins.v1.Step"


class PluginSettings(BaseModel):
    """A plugin: its code, the models it goes with, and what it may use."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)

    code: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+\.py$")]
    models: tuple[str, ...] = ()
    """None named: all."""
    order: int = 0
    memory_mebibytes: Annotated[int, Field(ge=64, le=65536)] = 512
    cpu_seconds: Annotated[int, Field(ge=1, le=3600)] = 2
    """How much processor time one call may use; whoever uses more is killed."""
    timeout_seconds: Annotated[float, Field(gt=0, le=60)] = 1

    @classmethod
    def read(cls, file: Path) -> PluginSettings:
        """Return what a file says. Raises InvalidInput."""
        try:
            return cls.model_validate_json(file.read_bytes())
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise InvalidInput(f"plugin {file.name}: {where or 'the file'}: {first['msg']}") from error
        except OSError as error:
            raise InvalidInput(f"plugin {file.name}: {error}") from error
