"""Draws follow the shares, stay within the nucleus, and repeat with their seed."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from belvedere_serving.generation.sampling import Sampling, choose


def test_without_temperature_the_likeliest_is_taken() -> None:
    assert choose(np.array([0.1, 3.0, 2.9]), Sampling(), np.random.default_rng(0)) == 1


@given(st.integers(0, 999), st.floats(0.05, 1.0), st.floats(0.2, 3.0))
def test_only_words_of_the_nucleus_are_drawn(seed: int, top_p: float, temperature: float) -> None:
    logits = np.random.default_rng(seed).normal(size=12)
    logits[3] = -np.inf
    share = np.exp(logits / temperature)
    share /= share.sum()
    order = np.argsort(-share)
    nucleus = order[: int(np.searchsorted(share[order].cumsum(), top_p - 1e-9)) + 1]
    sampling = Sampling(temperature=temperature, top_p=top_p, seed=seed)
    generator = sampling.generator()
    drawn = {choose(logits, sampling, generator) for _ in range(20)}
    assert drawn <= set(nucleus.tolist())
    assert 3 not in drawn


def test_draws_follow_the_shares() -> None:
    share = np.array([0.5, 0.3, 0.15, 0.05])
    sampling = Sampling(temperature=1.0, seed=1)
    generator = sampling.generator()
    drawn = np.bincount([choose(np.log(share), sampling, generator) for _ in range(4000)], minlength=4) / 4000
    np.testing.assert_allclose(drawn, share, atol=0.03)
