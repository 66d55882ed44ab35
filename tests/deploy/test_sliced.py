"""Runs of a benchmark in slices: what another configuration left under the same name is neither taken up nor counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import sliced
from belvedere_platform.artifacts import ArtifactStore
from belvedere_training.config import RunConfig
from belvedere_training.data.manifest import push
from belvedere_training.data.shapes import build_shapes
from belvedere_training.loop import Interrupted, Loop
from belvedere_training.model.config import SIZES, ConvConfig, ModelConfig, TextConfig
from belvedere_training.world import LocalWorld
from training_subject import run_config

TINY = ModelConfig(
    embed_dim=16,
    vision=ConvConfig(stem_width=8, widths=(8, 16), blocks=(1, 1), pooled_width=16),
    text=TextConfig(vocab_size=400, hidden_size=16, num_layers=1, num_heads=2, max_length=12),
)


def config(pairs: int) -> RunConfig:
    """Return a short run over the shapes."""
    return run_config("sliced", pairs=pairs, dataset="shapes", batchSize=16, warmupPairs=16, precision="fp32")


def cut_off(loop: Loop) -> None:
    """End the slice after its first step."""
    assert isinstance(loop.world, LocalWorld)
    loop.world.notice.set()


def test_a_slice_goes_on_with_its_own_configuration_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BELVEDERE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(SIZES, "nano", TINY)
    monkeypatch.setattr(sliced, "STATE", tmp_path / "state")
    store = ArtifactStore((tmp_path / "artifacts").as_uri())
    push(build_shapes(tmp_path / "shapes"), store, "datasets/shapes")
    sliced.trained(config(pairs=64), store, cores=1)
    (kept,) = (tmp_path / "state").rglob("seconds.json")
    kept.write_text(json.dumps([1e6, 1e6]))
    with pytest.raises(Interrupted, match="after 16 of 48 pairs"):
        sliced.trained(config(pairs=48), store, cores=1, begun=cut_off)
    found: list[int] = []
    loop, clock, processor = sliced.trained(
        config(pairs=48), store, cores=1, begun=lambda loop: found.append(loop.progress.pairs)
    )
    assert found == [16], "another run of the same name has a later checkpoint"
    assert loop.progress.pairs == 48
    assert max(clock, processor) < 1e6, "the time of another run was counted"
