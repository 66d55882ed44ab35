"""Heads in Triton: their configurations, the files each gets, and the loop that answers, apart from Triton itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from tritonclient.grpc import model_config_pb2 as pb

from belvedere_platform.errors import CorruptData, InvalidInput
from belvedere_platform.protocol import IMAGE, SCORE, TEXT, InferRequest, Reason, Tensor, V2Error
from belvedere_platform.resources.model_service import WritingOptions
from belvedere_serving.engines.preprocess import ImagePreprocessor, ImageRecipe, TextPreprocessor, TextRecipe
from belvedere_serving.generation.decoder import HEADS_FILE, Heads
from belvedere_serving.server.config import ModelOptions
from belvedere_serving.triton.head_runner import WHOLE, HeadRunner, Part
from belvedere_serving.triton.heads import head_config
from belvedere_serving.triton.model_config import parse
from belvedere_serving.triton.options import RepositoryOptions
from belvedere_serving.triton.repository import write_heads
from tiny_writer import EDGE, TorchHeads

PROGRAMS = ("encode_image", "match", "decode_state", "decode_step")
OPTIONS = ModelOptions(version="writer-v3", max_batch_size=4)


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    folder = tmp_path / "engine"
    folder.mkdir()
    (folder / HEADS_FILE).write_text(TorchHeads().heads.model_dump_json(by_alias=True))
    for name in (*(f"{program}.onnx" for program in PROGRAMS), "preprocess.json", "tokenizer.json"):
        (folder / name).write_text(name)
    return folder


def runner(name: str) -> Iterator[HeadRunner]:
    heads = TorchHeads()
    text = TextPreprocessor(heads.tokenizer.to_str(), TextRecipe(context_length=40))
    image = ImagePreprocessor(ImageRecipe(size=EDGE, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)))
    made = HeadRunner(heads, text, image, name, OPTIONS)  # type: ignore[arg-type]
    yield made
    made.close()


@pytest.fixture
def captions() -> Iterator[HeadRunner]:
    yield from runner("caption")


@pytest.fixture
def matches() -> Iterator[HeadRunner]:
    yield from runner("match")


def asked(name: str, picture: bytes, **parameters: bool | int) -> InferRequest:
    inputs = [Tensor.of_bytes(IMAGE, [picture])]
    if name == "match":
        inputs.append(Tensor.of_bytes(TEXT, [b"a red circle"]))
    return InferRequest(model_name=name, inputs=tuple(inputs), parameters=parameters)


def parts_of(head: HeadRunner, request: InferRequest, **changes: float) -> list[Part]:
    parts: list[Part] = []
    head.stream(request, parts.append, lambda: False, **changes).result(30)
    return parts


def text_of(part: Part) -> str:
    assert part.outcome is not None
    assert not isinstance(part.outcome, V2Error)
    return str(part.outcome.outputs[0].array[0].decode())


def test_how_texts_are_written_is_in_the_configuration_of_those_who_write() -> None:
    told = RepositoryOptions(version="writer-v3", writing={"max_new_tokens": 7, "cache_precision": "int8"})
    options = ModelOptions.model_validate_json(head_config("caption", told).parameters["options"].string_value)
    assert (options.max_new_tokens, options.cache_precision, options.cache_block_size) == (7, "int8", 16)


def test_wrong_writing_is_refused_by_its_name() -> None:
    with pytest.raises(InvalidInput, match="writing: cacheBlocks is 0"):
        WritingOptions.read('{"cacheBlocks": 0}')


def test_each_head_gets_its_own_programs_and_says_whether_it_writes(engine: Path, tmp_path: Path) -> None:
    write_heads(engine, tmp_path / "repository", RepositoryOptions(version="writer-v3", max_batch_size=4))
    found = {}
    for path in (tmp_path / "repository").glob("*/config.pbtxt"):
        config = found[path.parent.name] = parse(path.read_text(), path)
        assert (config.name, config.max_batch_size) == (path.parent.name, 0)
        assert ModelOptions.model_validate_json(config.parameters["options"].string_value) == OPTIONS.model_copy(
            update={"batch_wait_milliseconds": 2}
        )
    assert {name: config.model_transaction_policy.decoupled for name, config in found.items()} == {
        "match": False,
        "explain": False,
        "caption": True,
        "answer": True,
    }
    assert (list(found["explain"].output[0].dims), found["answer"].output[0].data_type) == ([-1, 8, 8], pb.TYPE_STRING)
    own = {name: tmp_path / "repository" / name / "3" for name in found}
    programs = {name: sorted(path.stem for path in folder.glob("*.onnx")) for name, folder in own.items()}
    assert programs["match"] == ["encode_image", "match"]
    assert programs["caption"] == ["decode_state", "decode_step", "encode_image"]
    assert (Heads.read(own["match"]).decoder, Heads.read(own["caption"]).match) == (None, False)


def test_an_engine_without_heads_has_no_such_models(tmp_path: Path) -> None:
    write_heads(tmp_path, tmp_path / "repository", RepositoryOptions(version="v1"))
    assert not (tmp_path / "repository").exists()


def test_a_missing_program_is_named(engine: Path, tmp_path: Path) -> None:
    (engine / "decode_step.onnx").unlink()
    with pytest.raises(CorruptData, match=r"lacks decode_step\.onnx; build it again"):
        write_heads(engine, tmp_path / "repository", RepositoryOptions(version="v1"))


def test_parts_make_up_the_whole_text_and_the_last_says_so(captions: HeadRunner, tiny: ModuleType) -> None:
    request = asked("caption", tiny.picture())
    parts = parts_of(captions, request)
    assert [part.final for part in parts] == [False] * (len(parts) - 1) + [True]
    (whole,) = parts_of(captions, asked("caption", tiny.picture(), **{WHOLE: True}))
    assert whole.final
    assert "".join(map(text_of, parts)) == text_of(whole) != ""


def test_scores_come_at_once(matches: HeadRunner, tiny: ModuleType) -> None:
    (score,) = matches.infer(asked("match", tiny.picture())).outputs
    assert (score.name, score.shape) == (SCORE, (1,))
    assert 0 <= float(np.asarray(score.array)[0]) <= 1


@pytest.mark.parametrize("parameters", [{}, {WHOLE: True}])
def test_what_is_no_picture_is_an_error_and_the_end(captions: HeadRunner, parameters: dict[str, bool]) -> None:
    (part,) = parts_of(captions, asked("caption", b"no picture", **parameters))
    assert part.final
    assert isinstance(part.outcome, V2Error)
    assert part.outcome.reason is Reason.INVALID_ARGUMENT


def test_a_text_whose_time_is_up_ends_with_an_error(captions: HeadRunner, tiny: ModuleType) -> None:
    last = parts_of(captions, asked("caption", tiny.picture()), timeout_seconds=1e-9)[-1]
    assert last.final
    assert isinstance(last.outcome, V2Error)
    assert last.outcome.reason is Reason.DEADLINE_EXCEEDED


def test_a_text_that_nobody_waits_for_is_not_finished(captions: HeadRunner, tiny: ModuleType) -> None:
    parts: list[Part] = []
    captions.stream(asked("caption", tiny.picture()), parts.append, lambda: True).result(30)
    assert parts == [Part(outcome=None, final=True)]
