"""Whether what was stored is there still."""

from __future__ import annotations

from typing import Any


def contains(now: Any, before: Any) -> bool:
    """Return whether everything that was there is there still; new defaults may have joined it."""
    if isinstance(before, dict):
        return isinstance(now, dict) and all(contains(now.get(key), value) for key, value in before.items())
    if isinstance(before, list):
        return isinstance(now, list) and len(now) == len(before) and all(map(contains, now, before))
    return bool(now == before)
