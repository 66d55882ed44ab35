"""The resources of the API group belvedere.dev: pydantic models from which the CRDs are generated."""

from belvedere_platform.resources.base import API_VERSION, GROUP, VERSION, Condition, Resource
from belvedere_platform.resources.engine import Engine
from belvedere_platform.resources.gateway_route import GatewayRoute
from belvedere_platform.resources.model_service import ModelService
from belvedere_platform.resources.model_version import ModelVersion
from belvedere_platform.resources.training_run import TrainingRun

RESOURCES: tuple[type[Resource], ...] = (TrainingRun, ModelVersion, Engine, ModelService)

__all__ = [
    "API_VERSION",
    "GROUP",
    "RESOURCES",
    "VERSION",
    "Condition",
    "Engine",
    "GatewayRoute",
    "ModelService",
    "ModelVersion",
    "Resource",
    "TrainingRun",
]
