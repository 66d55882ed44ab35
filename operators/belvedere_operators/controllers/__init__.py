"""The controllers, one for each kind that is ours. A new one adds its line to `controllers`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from belvedere_operators.controllers.context import Context
    from belvedere_operators.runtime import Runnable


def controllers(context: Context) -> list[Runnable]:
    """Return everything that reconciles, ready to run."""
    from belvedere_operators.controllers.modelservice.controller import model_service_controller

    return [model_service_controller(context)]
