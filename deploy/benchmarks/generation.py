"""Writing texts: what the cache, batching and keeping pictures save, on a model of size `small` with seeded weights of its own.

How long a step takes does not depend on what the weights are. Both sides run the same ONNX programs on one thread in alternating rounds.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from belvedere_platform.protocol import ANSWER, CAPTION, IMAGE, TEXT, InferRequest, Tensor
from belvedere_platform.telemetry.benchmark import Row, result
from belvedere_serving.engines.build import one_torch_thread
from belvedere_serving.engines.heads import torch_heads
from belvedere_serving.engines.preprocess import ImagePreprocessor, ImageRecipe, TextPreprocessor, TextRecipe
from belvedere_serving.generation.cache import Kept, PagedCache
from belvedere_serving.generation.decoder import HEADS_FILE, Geometry, HeadPrograms, Heads, onnx_heads
from belvedere_serving.generation.generator import CacheOptions, Generator, Writing
from belvedere_serving.generation.scheduler import Plan
from belvedere_serving.server.admission import Lane
from belvedere_serving.server.batching import Batcher, on_thread
from belvedere_serving.server.features import FeatureCache, PictureReader
from belvedere_serving.server.heads import WritingModel, head_metadata
from belvedere_serving.server.metrics import NoMetrics
from belvedere_serving.server.timing import Timing
from belvedere_serving.server.waiting import BatchPolicy
from belvedere_serving.server.writing import Writer
from vision import picture

Array = npt.NDArray[Any]
EDGE, LONGEST, ROUNDS = 64, 96, 7
NUM_PICTURES, LENGTHS = 4, (8, 24, 16, 48)
NOTE = "size small, topology fusion, seeded weights, ONNX Runtime fp32, one thread"


def generation_rows(folder: Path, say: Callable[[str], None]) -> list[Row]:
    """Return the rows of the group."""
    say("exporting a captioning model of size small")
    with one_torch_thread():
        programs, tokenizer = _model(folder)
    rows = [_kv_latency(programs, 16, 0.4), _kv_latency(programs, 64, 0.6), _waste(programs), _int8(programs)]
    say("the whole way of a request, feature by feature")
    return rows + asyncio.run(_end_to_end(programs, tokenizer))


def _model(folder: Path) -> tuple[HeadPrograms, str]:
    import torch

    from belvedere_training.model.config import ModelConfig, sized
    from belvedere_training.model.export_heads import export_heads
    from belvedere_training.model.tokenizer import END, learn
    from belvedere_training.model.vision_language import VisionLanguageModel

    texts = [
        f"a {colour} {thing} on the {side}"
        for colour in ("red", "blue")
        for thing in ("circle", "tree")
        for side in ("left", "right")
    ]
    shape = sized("small", topology="fusion")
    tokenizer = learn(texts, shape.text.vocab_size, LONGEST, generative=True)
    text = shape.text.model_copy(update={"max_length": LONGEST})
    torch.manual_seed(0)
    model = VisionLanguageModel(ModelConfig.model_validate({**dict(shape), "text": text})).eval()
    with torch.no_grad():
        torch.nn.init.normal_(model.text.embedding.weight, std=0.05)
        # Every text gets the length that is asked for.
        model.language_head.bias_V[tokenizer.token_to_id(END)] = -1e4
    files = export_heads(model, tokenizer)
    # Matching is not measured here, and each program takes its time to become ONNX.
    files[HEADS_FILE] = json.dumps({**json.loads(files[HEADS_FILE]), "match": False}).encode()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    torch_heads(folder, Heads.read(folder))
    programs = onnx_heads(folder)
    assert programs is not None
    return programs, str(tokenizer.to_str())


class Anew:
    """The decoder without memory: the picture's part of it, too, is computed again for every word."""

    def __init__(self, programs: HeadPrograms) -> None:
        self._programs = programs

    @property
    def geometry(self) -> Geometry:
        return self._programs.geometry

    def picture(self, features: Array) -> Array:
        return features

    def step(self, tokens: Array, counts: Array, starts: Array, past: Array, picture: Array) -> tuple[Array, Array]:
        return self._programs.step(tokens, counts, starts, past, self._programs.picture(picture))


class WithoutCache(Generator):
    """Looks at every token of every text again in each step."""

    def compute(self, plan: Plan[Writing]) -> dict[Writing, Array]:
        for writing in plan.go_on:
            writing.num_cached = 0
        return super().compute(plan)


def write(generator: Generator, states: Sequence[Array], lengths: Sequence[int]) -> list[list[int]]:
    start = generator.decoder.geometry.start_id
    writings = [
        Writing(prompt=(start,), max_new_tokens=length, picture=state)
        for state, length in zip(states, lengths, strict=True)
    ]
    for writing in writings:
        generator.add(writing)
    while generator.busy:
        generator.step()
    return [writing.written for writing in writings]


def encoded_and_pixels(count: int) -> tuple[list[bytes], Array]:
    encoded = [picture(number, EDGE) for number in range(count)]
    return encoded, _image()(encoded)


def _image() -> ImagePreprocessor:
    return ImagePreprocessor(ImageRecipe(size=EDGE, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)))


def _kv_latency(programs: HeadPrograms, length: int, target: float) -> Row:
    """Return what is saved of the time from pixels to the last word of one text."""
    _, pixels = encoded_and_pixels(1)
    sides: dict[str, tuple[Any, type[Generator]]] = {
        "cached": (programs, Generator),
        "without": (Anew(programs), WithoutCache),
        "picture kept": (programs, WithoutCache),
    }
    taken: dict[str, list[float]] = {name: [] for name in sides}
    words: dict[str, list[int]] = {}
    for number in range(ROUNDS + 1):
        for name, (decoder, kind) in sides.items():
            generator = kind(decoder, CacheOptions(num_blocks=8))
            started = time.perf_counter()
            states = decoder.picture(programs.encode(pixels))
            (words[name],) = write(generator, list(states), [length])
            if number > 0:  # the first round warms up
                taken[name].append(1000 * (time.perf_counter() - started))
    same = words["cached"] == words["without"] == words["picture kept"]
    assert same, "the cached decoder writes other words"
    assert len(words["cached"]) == length
    saved = [1 - own / other for own, other in zip(taken["cached"], taken["without"], strict=True)]
    kept = statistics.median(1 - own / other for own, other in zip(taken["cached"], taken["picture kept"], strict=True))
    return result(
        f"kv_latency_saved_{length}",
        statistics.median(saved),
        "share",
        "higher",
        target,
        peer="the same programs, everything behind the vision tower anew for each word",
        peer_value=statistics.median(taken["without"]),
        own_value=statistics.median(taken["cached"]),
        rounds=ROUNDS,
        spread=[min(saved), max(saved)],
        note=f"{NOTE}; one picture, {length} words, the same on all sides; {kept:.3f} where only text is computed anew",
    )


def _waste(programs: HeadPrograms) -> Row:
    """Return the most of a block that a text left empty at any step, many texts joining and leaving."""
    options = CacheOptions(num_blocks=24, block_size=16, max_running=8)
    generator = Generator(programs, options)
    _, pixels = encoded_and_pixels(NUM_PICTURES)
    states = programs.picture(programs.encode(pixels))
    start = programs.geometry.start_id
    for number in range(16):
        length = LENGTHS[number % len(LENGTHS)] + number
        generator.add(Writing(prompt=(start,), max_new_tokens=length, picture=states[number % NUM_PICTURES]))
    most, average = 0.0, []
    while generator.busy:
        generator.step()
        wastes = [len(text.table) - text.num_cached / options.block_size for text in generator.scheduler.running]
        most = max([most, *wastes])
        average += wastes
    return result(
        "kv_waste_blocks",
        most,
        "blocks",
        "lower",
        1 - 1e-9,
        note=f"the worst of 16 texts at any step, blocks of {options.block_size}; {statistics.mean(average):.2f} on average; "
        "a table of fixed length would keep up to 6 blocks for each",
    )


def _int8(programs: HeadPrograms) -> Row:
    kept = programs.geometry
    sizes: dict[str, Any] = {
        "num_blocks": 8,
        "block_size": 16,
        "layers": kept.layers,
        "width": kept.width,
        "heads": kept.heads,
    }
    exact, small = PagedCache(**sizes), PagedCache(**sizes, kept="int8")
    _, pixels = encoded_and_pixels(16)
    states = list(programs.picture(programs.encode(pixels)))
    lengths = [48] * len(states)
    forms: tuple[Kept, ...] = ("fp32", "int8")
    written = [write(Generator(programs, CacheOptions(kept=form)), states, lengths) for form in forms]
    alike = np.mean([a == b for one, other in zip(*written, strict=True) for a, b in zip(one, other, strict=True)])
    ratio = small.nbytes / exact.nbytes
    return result(
        "kv_int8_bytes_ratio",
        ratio,
        "share",
        "lower",
        0.55,
        peer="fp32, as the cache is otherwise",
        peer_value=exact.nbytes / 128,
        own_value=small.nbytes / 128,
        note=f"bytes of a token, scales included; {2 * ratio:.3f} of half precision; "
        f"{alike:.3f} of 768 words are the same as with the exact cache",
    )


@dataclass(frozen=True, kw_only=True)
class Features:
    """Which of them are on."""

    cache: bool = True
    batching: bool = True
    kept_pictures: bool = True


@contextlib.contextmanager
def _models(programs: HeadPrograms, tokenizer: str, on: Features) -> Iterator[dict[str, WritingModel]]:
    """Give caption and answer as the server puts them together, with some features left out."""
    decoder: Any = programs if on.cache else Anew(programs)
    policy = BatchPolicy(max_rows=16 if on.batching else 1, wait_seconds=0.002, max_waiting_rows=256)
    with ThreadPoolExecutor(1) as engine, ThreadPoolExecutor(1) as preparing:
        lane, metrics = Lane(), NoMetrics()

        def batcher(name: str, call: Callable[[Array], Array]) -> Batcher:
            return Batcher(name, on_thread(call, engine, lane.lag), policy, metrics, lane=lane)

        pictures = PictureReader(
            _image(),
            batcher("encode", programs.encode),
            FeatureCache(32 << 20 if on.kept_pictures else 0),
            preparing=preparing,
            state=batcher("state", decoder.picture),
        )
        options = CacheOptions(num_blocks=128, max_running=16 if on.batching else 1)
        generator = (Generator if on.cache else WithoutCache)(decoder, options)
        writer = Writer(generator, metrics, executor=engine, lane=lane.lock, max_texts=256)
        text = TextPreprocessor(tokenizer, TextRecipe(context_length=LONGEST))
        yield {
            name: WritingModel(
                metadata=head_metadata(name, "bench-v1", "bench"),
                version="bench-v1",
                pictures=pictures,
                max_rows=16,
                writer=writer,
                geometry=programs.geometry,
                text=text,
            )
            for name in (CAPTION, ANSWER)
        }


async def _request_seconds(programs: HeadPrograms, tokenizer: str, on: Features, salt: int) -> float:
    """Return the mean time of a request when each of some pictures is captioned and asked three things, all at once."""
    pictures = [picture(100 * salt + number, EDGE) for number in range(NUM_PICTURES)]
    with _models(programs, tokenizer, on) as models:

        async def ask(name: str, number: int, length: int) -> float:
            inputs = [Tensor.of_bytes(IMAGE, [pictures[number]])]
            if name == ANSWER:
                inputs.append(Tensor.of_bytes(TEXT, [b"a red circle on the left"]))
            request = InferRequest(model_name=name, inputs=tuple(inputs), parameters={"max_tokens": length})
            started = time.monotonic()
            await models[name].infer(request, started + 600, Timing())
            return time.monotonic() - started

        asked = [
            ask(CAPTION if turn == 0 else ANSWER, number, LENGTHS[(turn + number) % len(LENGTHS)])
            for turn in range(4)
            for number in range(NUM_PICTURES)
        ]
        seconds = await asyncio.gather(*asked)
        for model in models.values():
            await model.close()
    return statistics.mean(seconds)


async def _end_to_end(programs: HeadPrograms, tokenizer: str) -> list[Row]:
    sides = {
        "all": Features(),
        "without_cache": Features(cache=False),
        "without_batching": Features(batching=False),
        "without_kept_pictures": Features(kept_pictures=False),
        "none": Features(cache=False, batching=False, kept_pictures=False),
    }
    rounds = 3
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, on in sides.items():
            seconds = await _request_seconds(programs, tokenizer, on, number)
            if number > 0:
                taken[name].append(1000 * seconds)
    own, peer = taken["all"], taken["none"]
    saved = [1 - mine / theirs for mine, theirs in zip(own, peer, strict=True)]
    what = f"{NOTE}; {4 * NUM_PICTURES} captions and answers about {NUM_PICTURES} pictures at once, {min(LENGTHS)} to {max(LENGTHS)} words"
    rows = [
        result(
            "end_to_end_latency_saved",
            statistics.median(saved),
            "share",
            "higher",
            0.3,
            peer="the same engine, one text at a time, each picture and each word anew",
            peer_value=statistics.median(peer),
            own_value=statistics.median(own),
            rounds=rounds,
            spread=[min(saved), max(saved)],
            note=f"mean time of a request in ms, from encoded picture to text; {what}",
        )
    ]
    for name in ("without_cache", "without_batching", "without_kept_pictures"):
        without = taken[name]
        share = statistics.median(1 - mine / theirs for mine, theirs in zip(own, without, strict=True))
        rows.append(
            result(
                f"end_to_end_saved_over_{name}",
                share,
                "share",
                "higher",
                None,
                peer=name.replace("_", " "),
                peer_value=statistics.median(without),
                own_value=statistics.median(own),
                rounds=rounds,
                note="ablation: what all features together save over all but this one",
            )
        )
    return rows
