"""Heads become ONNX programs that write what torch writes without a cache, and a head that strays is found out by its words."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from belvedere_platform.errors import CorruptData
from belvedere_platform.protocol import EMBED_IMAGE, EMBED_TEXT
from belvedere_platform.resources.engine import ParityGate, ParityReport
from belvedere_serving.engines.device import Device
from belvedere_serving.engines.head_precision import Int8, Reference, smallest
from belvedere_serving.engines.heads import build_heads, match_parity, reports, word_parity
from belvedere_serving.engines.measure import holds
from belvedere_serving.engines.source import HeldOut
from belvedere_serving.generation.decoder import Heads, onnx_heads, onnx_programs
from belvedere_training.model.export_heads import export_heads
from tiny_writer import EDGE, TorchHeads


@pytest.fixture
def held_out() -> dict[str, HeldOut]:
    generator = np.random.default_rng(0)
    pixels = generator.normal(size=(6, 3, EDGE, EDGE)).astype(np.float32)
    tokens = np.pad(generator.integers(2, 200, (6, 5)), ((0, 0), (0, 35)))
    ids = tuple(map(str, range(6)))
    return {EMBED_IMAGE: HeldOut(ids, pixels), EMBED_TEXT: HeldOut(ids, tokens)}


@pytest.mark.slow
def test_the_programs_of_an_engine_decide_and_write_as_the_model(tmp_path: Path, held_out: dict[str, HeldOut]) -> None:
    heads = TorchHeads(layers=(0, 1))  # exporters take their time for each operator
    for name, content in export_heads(heads.model, heads.tokenizer).items():
        (tmp_path / name).write_bytes(content)
    said: list[str] = []
    built = build_heads(tmp_path, held_out, said.append)
    assert sorted(built.files) == [
        *("decode_state.onnx", "decode_step.onnx", "encode_image.onnx"),
        *("heads.json", "match.onnx"),
    ]
    assert all(path.is_file() for path in built.files.values())
    assert [line.partition(":")[0] for line in said] == ["match", "caption"]
    for report in built.parity.values():
        assert holds(ParityReport.model_validate(report), ParityGate(cosine_minimum=0.99999, top1_agreement_minimum=1))
    engine = onnx_heads(tmp_path)
    assert engine is not None
    pixels = held_out[EMBED_IMAGE].array
    np.testing.assert_allclose(engine.encode(pixels), heads.encode(pixels), atol=1e-5)
    files = {name: tmp_path / f"{name}.onnx" for name in heads.heads.programs}
    reference = Reference(heads, pixels, held_out[EMBED_TEXT].array)  # type: ignore[arg-type]
    _check_int8(files, engine.heads, reference)
    (tmp_path / "match.onnx").unlink()
    with pytest.raises(CorruptData, match="lacks match; build it again"):
        onnx_heads(tmp_path)


def _check_int8(files: dict[str, Path], heads: Heads, reference: Reference) -> None:
    """A program stays in 8 bits only if all heads pass with it, and it is faster."""

    def near(given: Mapping[str, Path]) -> Mapping[str, ParityReport]:
        return reports(reference, onnx_programs(heads, given))

    device = Device("old", ("avx2",))
    strict = ParityGate(cosine_minimum=1.0, top1_agreement_minimum=1.0)
    chosen, tried = smallest(files, Int8(gate=strict, device=device), near, reference)
    assert (chosen, {trial.kept for trial in tried.values()}) == (files, {False})
    loose = ParityGate(cosine_minimum=0.0, top1_agreement_minimum=0.0)
    chosen, tried = smallest(files, Int8(gate=loose, device=device), near, reference)
    assert set(tried) == set(files)
    for name, trial in tried.items():
        assert trial.near
        assert trial.kept == (trial.milliseconds < trial.fp32_milliseconds)
        assert chosen[name].name == (f"{name}-int8.onnx" if trial.kept else f"{name}.onnx")
        assert (chosen[name].parent / f"{name}-int8.onnx").stat().st_size > 0


def test_another_model_is_told_by_its_words_and_by_its_scores(held_out: dict[str, HeldOut]) -> None:
    own: Any = TorchHeads()
    other: Any = TorchHeads(seed=4)
    pixels, tokens = (held_out[name].array for name in (EMBED_IMAGE, EMBED_TEXT))
    gate = ParityGate(cosine_minimum=0.98, top1_agreement_minimum=0.95)
    reference = Reference(own, pixels, tokens)
    assert holds(word_parity(reference, own), gate)
    assert not holds(word_parity(reference, other), gate)
    assert holds(match_parity(reference, own), gate)
    assert match_parity(reference, other).cosine_min < 1


def test_a_model_without_heads_builds_none(tmp_path: Path, held_out: dict[str, HeldOut]) -> None:
    assert build_heads(tmp_path, held_out, print).files == {}
    assert onnx_heads(tmp_path) is None


def test_a_model_that_lacks_a_program_says_which(tmp_path: Path, held_out: dict[str, HeldOut]) -> None:
    (tmp_path / "heads.json").write_text('{"features": [4, 16], "match": true}')
    with pytest.raises(CorruptData, match=r"lacks encode_image.pt2"):
        build_heads(tmp_path, held_out, print)


@pytest.mark.parametrize("text", ["{", "[]", '{"decoder": {"layers": 0}}'])
def test_a_broken_description_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "heads.json").write_text(text)
    with pytest.raises(CorruptData, match=r"heads\.json does not say which heads there are"):
        Heads.read(tmp_path)
