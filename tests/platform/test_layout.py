"""The layout holds what the packaging promises."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("source_root", ["platform", "operators", "serving", "training"])
def test_no_source_root_is_a_package(source_root: str) -> None:
    # platform/__init__.py would shadow the standard library's module for every program started here.
    assert not (ROOT / source_root / "__init__.py").exists()


def test_the_standard_library_platform_module_is_found() -> None:
    assert platform.system()
    assert "belvedere" not in str(platform.__file__)


def test_the_tests_are_not_packages() -> None:
    assert not list((ROOT / "tests").rglob("__init__.py"))
