"""Files in which an installation says how it is set up: YAML that one model takes."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import ValidationError

from belvedere_platform.errors import InvalidInput
from belvedere_platform.resources.base import Part

Model = TypeVar("Model", bound=Part)


def read_installation_file(path: Path, model: type[Model], *, what: str) -> Model:
    """Return what a file says; `what` names it in errors. Raises InvalidInput that names the field."""
    try:
        return model.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    except OSError as error:
        raise InvalidInput(f"the {what} {path} cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise InvalidInput(f"the {what} {path} are not YAML: {error}") from error
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, one['loc'])) or 'the file'}: {one['msg']}" for one in error.errors())
        raise InvalidInput(f"the {what} {path} are wrong: {wrong}") from error
