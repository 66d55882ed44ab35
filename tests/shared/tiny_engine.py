"""An engine of a few ONNX operators, made without torch, whose answers can be worked out by hand."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors

WORDS = ["[PAD]", "[CLS]", "[UNK]", "red", "green", "blue", "apple", "broken"]
SIZE, CONTEXT, DIMENSION = 8, 6, 4
NUM_EMBEDDED = len(WORDS) - 1
"""The last word has no row in the table, so a text with it makes the engine fail."""


def table() -> np.ndarray:
    """Return the word vectors."""
    return np.random.default_rng(0).normal(size=(NUM_EMBEDDED, DIMENSION)).astype(np.float32)


def expected_text(words: list[str]) -> np.ndarray:
    """Return what embed_text must answer for a text of these words."""
    ids = [1, *(WORDS.index(word) for word in words)]
    mean = table()[ids + [0] * (CONTEXT - len(ids))].mean(0)
    return mean / np.linalg.norm(mean)


def _unit(
    graph_input: str,
    last: str,
    nodes: list[onnx.NodeProto],
    tensors: list[onnx.TensorProto],
    shape: list[object],
    kind: int,
) -> onnx.ModelProto:
    nodes = [
        *nodes,
        helper.make_node("ReduceL2", [last, "last_axis"], ["norm"], keepdims=1),
        helper.make_node("Div", [last, "norm"], ["EMBEDDING"]),
    ]
    tensors = [*tensors, numpy_helper.from_array(np.array([-1]), "last_axis")]
    graph = helper.make_graph(
        nodes,
        "tower",
        [helper.make_tensor_value_info(graph_input, kind, shape)],
        [helper.make_tensor_value_info("EMBEDDING", TensorProto.FLOAT, ["n", DIMENSION])],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def write(folder: Path) -> Path:
    """Write the files of an engine artifact."""
    axis = numpy_helper.from_array(np.array([1]), "words_axis")
    text = [
        helper.make_node("Gather", ["table", "tokens"], ["rows"]),
        helper.make_node("ReduceMean", ["rows", "words_axis"], ["mean"], keepdims=0),
    ]
    weights = np.random.default_rng(1).normal(size=(3 * SIZE * SIZE, DIMENSION)).astype(np.float32)
    image = [
        helper.make_node("Flatten", ["pixels"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["product"]),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(
        _unit(
            "tokens", "mean", text, [numpy_helper.from_array(table(), "table"), axis], ["n", CONTEXT], TensorProto.INT64
        ),
        folder / "embed_text.onnx",
    )
    onnx.save(
        _unit(
            "pixels",
            "product",
            image,
            [numpy_helper.from_array(weights, "weights")],
            ["n", 3, SIZE, SIZE],
            TensorProto.FLOAT,
        ),
        folder / "embed_image.onnx",
    )
    (folder / "tokenizer.json").write_text(_tokenizer(), encoding="utf-8")
    recipe = {
        "image": {"size": SIZE, "mean": [0.5] * 3, "std": [0.5] * 3},
        "text": {"contextLength": CONTEXT, "padId": 0},
    }
    (folder / "preprocess.json").write_text(json.dumps(recipe), encoding="utf-8")
    return folder


def _tokenizer() -> str:
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 1)])
    return str(made.to_str())


def picture(
    colour: tuple[int, int, int] = (200, 30, 30), kind: str = "PNG", size: tuple[int, int] = (SIZE, SIZE)
) -> bytes:
    """Return an encoded picture of one colour with a white corner."""
    image = Image.new("RGB", size, colour)
    image.paste((255, 255, 255), (0, 0, size[0] // 2, size[1] // 2))
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()
