"""Logging: one line an event, fields beside it."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from belvedere_platform.telemetry.logging import OWN_LOGGERS, configure_logging


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name in OWN_LOGGERS:
        logging.getLogger(name).setLevel(logging.NOTSET)


def test_text_is_for_people() -> None:
    stream = io.StringIO()
    configure_logging(stream=stream)
    log = logging.getLogger("belvedere_operators.controllers.engine")
    log.info("applied", extra={"object": "a b", "seconds": 1.23456, "count": 3})
    log.warning("slow")
    logging.getLogger("a_library").info("not heard")
    first, second = stream.getvalue().splitlines()
    assert first.endswith(' engine: applied  object="a b" seconds=1.235 count=3')
    assert second.endswith(" WARNING engine: slow")


def test_json_is_for_collectors() -> None:
    stream = io.StringIO()
    configure_logging(form="json", verbose=True, stream=stream)
    try:
        raise ValueError("why")
    except ValueError:
        logging.getLogger("belvedere_serving").exception("failed", extra={"object": "x"})
    document = json.loads(stream.getvalue())
    assert (document["event"], document["object"], document["level"]) == ("failed", "x", "error")
    assert "ValueError: why" in document["traceback"]
