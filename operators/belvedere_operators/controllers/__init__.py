"""The controllers, one for each duty. A new one adds its line to `controllers`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from belvedere_operators.controllers.context import Context
    from belvedere_operators.runtime import Runnable


def controllers(context: Context) -> list[Runnable]:
    """Return everything that reconciles, ready to run."""
    from belvedere_operators.controllers.endpoints.controller import endpoints_controller
    from belvedere_operators.controllers.engine.controller import engine_controller
    from belvedere_operators.controllers.modelservice.controller import model_service_controller
    from belvedere_operators.controllers.modelversion.controller import model_version_controller
    from belvedere_operators.controllers.trainingrun.controller import training_run_controller

    return [
        training_run_controller(context),
        model_version_controller(context),
        engine_controller(context),
        model_service_controller(context),
        endpoints_controller(context),
    ]
