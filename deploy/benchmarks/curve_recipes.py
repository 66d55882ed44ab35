"""Every size and recipe that the project keeps, as what it changes of the quickstart's nano run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from belvedere_training.config import RunConfig
from training_subject import CONCEPTS, run_config

_MEETING = {"itm": 1, "lm": 1}
_ALL = {**_MEETING, "mlm": 0.5, "mim": 0.5}
_LARGE = {"recompute": True}  # or the activations of a batch alone fill a small machine

RECIPES: Mapping[str, Mapping[str, Any]] = {
    "nano": {},
    "nano-two-texts": {"optimization": {"textsPerPicture": 2}},
    "nano-coarse": {"optimization": {"coarseShare": 0.5}},
    "nano-vit": {"architecture": {"tower": "vit"}},
    "nano-routed": {"architecture": {"tower": "vit"}, "optimization": {"resolution": "ByEntropy"}},
    "nano-progressive": {"architecture": {"tower": "vit"}, "optimization": {"resolution": "Progressive"}},
    "nano-resnet": {"architecture": {"tower": "resnet"}},
    "nano-teacher": {"objectives": {"distillation": 0.4, "queueSize": 1024}},
    "nano-disentangled": {"objectives": {"disentangle": 0.1}},
    "nano-fusion": {"architecture": {"topology": "fusion", "tower": "vit", "attend": "pooled"}, "objectives": _ALL},
    "nano-unified": {"architecture": {"topology": "unified"}, "objectives": _MEETING},
    "nano-hybrid": {"architecture": {"topology": "hybrid"}, "objectives": _MEETING},
    "small": {"size": "small"},
    "small-two-texts": {"size": "small", "optimization": {"textsPerPicture": 2}},
    "small-vit": {"size": "small", "architecture": {"tower": "vit"}},
    "small-resnet": {"size": "small", "architecture": {"tower": "resnet"}},
    "base": {"size": "base", "optimization": _LARGE},
    "base-resnet": {"size": "base", "architecture": {"tower": "resnet"}, "optimization": _LARGE},
    "large": {"size": "large", "optimization": _LARGE},
    "large-resnet": {"size": "large", "architecture": {"tower": "resnet"}, "optimization": _LARGE},
}
"""By name. base and large are trained on the same pictures of 64 pixels as all others: one set of questions for all."""


def recipe_config(name: str, pairs: int, precision: str = "fp32") -> RunConfig:
    """Return the run of a recipe over so many pairs: rates, warm-up and decay follow from the budget."""
    changes = RECIPES[name]
    optimization = {"precision": precision, **changes.get("optimization", {}), "warmupPairs": min(3000, pairs // 10)}
    base = run_config(f"curve-{name}", pairs=pairs, dataset=CONCEPTS, **optimization).model_dump(
        by_alias=True, exclude_unset=True
    )
    further = {field: value for field, value in changes.items() if field != "optimization"}
    return RunConfig.model_validate({**base, **further})
