"""A tiny real model of each topology as the decoder, in torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tiny_writer import TorchHeads


@pytest.fixture(scope="session")
def a_decoder() -> Callable[..., TorchHeads]:
    made: dict[str, TorchHeads] = {}

    def make(topology: str = "fusion") -> TorchHeads:
        if topology not in made:
            made[topology] = TorchHeads(topology)
        return made[topology]

    return make


@pytest.fixture(scope="session")
def pictures(a_decoder: Callable[..., TorchHeads]) -> Any:
    """What four different pictures leave for the fusion model's texts."""
    generator = np.random.default_rng(0)
    return a_decoder().picture(generator.normal(size=(4, 4, 16)).astype(np.float32))
