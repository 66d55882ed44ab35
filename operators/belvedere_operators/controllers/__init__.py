"""The controllers, one package a duty: each gathers, decides (pure), applies and writes its status."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from belvedere_operators.controllers.context import ControllerContext, ControllerSettings, Images
from belvedere_operators.runtime import Controller

DUTIES = ("trainingrun", "modelversion", "engine", "modelservice", "endpoints")
Make = Callable[[ControllerContext], Controller]


def controllers(context: ControllerContext) -> list[Controller]:
    """Return every controller, not yet running. Each duty's package has `controller(context)`."""
    made: list[Controller] = []
    for duty in DUTIES:
        make: Make = importlib.import_module(f"{__name__}.{duty}").controller
        made.append(make(context))
    return made


__all__ = ["DUTIES", "ControllerContext", "ControllerSettings", "Images", "controllers"]
