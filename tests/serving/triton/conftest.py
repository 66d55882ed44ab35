"""Fixtures of this folder."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def tiny() -> ModuleType:
    path = Path(__file__).parent.parent / "server" / "tiny_engine.py"
    spec = importlib.util.spec_from_file_location("tiny_engine", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
