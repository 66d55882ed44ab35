"""Texts and pictures become what the towers take; what is broken or too large is refused before it costs anything."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from belvedere_platform.errors import CorruptData
from belvedere_platform.protocol import V2Error
from belvedere_serving.engines.preprocess import (
    ImageLimits,
    ImagePreprocessor,
    ImageRecipe,
    Recipe,
    TextPreprocessor,
    TextRecipe,
    fit_and_pad,
)

RECIPE = ImageRecipe(size=16, mean=(0.5, 0.4, 0.3), std=(0.5, 0.25, 0.2))


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()


def a_picture(size: tuple[int, int] = (16, 16)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8))


def bomb(width: int, height: int) -> bytes:
    """Return a small PNG file that claims to be huge."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


def test_pixels_are_normalized_by_channel() -> None:
    image = a_picture()
    expected = (np.asarray(image) / 255 - [0.5, 0.4, 0.3]) / [0.5, 0.25, 0.2]
    (got,) = ImagePreprocessor(RECIPE)([encoded(image)])
    np.testing.assert_allclose(got, expected.transpose(2, 0, 1), atol=1e-5)


def test_a_blank_is_a_white_picture() -> None:
    preprocessor = ImagePreprocessor(RECIPE)
    white = encoded(Image.new("RGB", (16, 16), "white"))
    np.testing.assert_allclose(preprocessor.blank(), preprocessor([white]), atol=1e-6)


def test_a_picture_of_the_right_size_is_unchanged() -> None:
    image = a_picture()
    assert fit_and_pad(image, 16).tobytes() == image.tobytes()


def test_a_wide_picture_is_centred_on_white() -> None:
    fitted = np.asarray(fit_and_pad(Image.new("RGB", (64, 32), "red"), 16))
    assert (fitted[:4] == 255).all()
    assert (fitted[12:] == 255).all()
    assert (fitted[4:12] == [255, 0, 0]).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_shows_white(mode: str) -> None:
    image = Image.new("RGBA", (16, 16), (255, 0, 0, 0))
    image.paste((0, 0, 255, 255), (0, 0, 8, 8))
    fitted = np.asarray(fit_and_pad(image.convert(mode), 16))
    if mode != "P":
        assert (fitted[8:] == 255).all()
    assert fitted.shape == (16, 16, 3)


def test_serving_and_training_fit_pictures_alike() -> None:
    render = pytest.importorskip("belvedere_training.data.render")
    for size in ((64, 64), (200, 80), (31, 97), (16, 16)):
        image = a_picture(size).convert("RGBA")
        image.putalpha(a_picture(size).convert("L"))
        assert fit_and_pad(image, 64).tobytes() == render.fit_and_pad(image, 64).tobytes()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "none of PNG"),
        (b"GIF89a", "none of PNG"),
        (b"\x89PNG\r\n\x1a\nnothing", "cannot be decoded"),
        (bomb(60_000, 60_000), "decompression bomb"),
        (bomb(5_000, 4_000), "5000 x 4000 pixels"),
        (bomb(3_000, 3_000), "cannot be decoded"),
        (b"\x89PNG\r\n\x1a\n" + bytes(2000), "bytes; at most"),
    ],
    ids=["empty", "gif", "cut off", "enormous", "too large", "less than it claims", "too many bytes"],
)
def test_what_is_no_picture_or_too_large_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(V2Error, match=words):
        ImagePreprocessor(RECIPE, ImageLimits(max_bytes=1500, max_pixels=10_000_000))([data])


@given(st.data())
def test_a_damaged_picture_is_read_or_refused(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["PNG", "JPEG", "WEBP"]))
    content = bytearray(encoded(a_picture(), kind))
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=6)):
        content[place] ^= data.draw(st.integers(1, 255))
    cut = data.draw(st.integers(0, len(content)))
    try:
        pixels = ImagePreprocessor(RECIPE)([bytes(content[:cut])])
    except V2Error:
        return
    assert np.isfinite(pixels).all()


def test_texts_are_cut_and_padded(stand_in: ModuleType) -> None:
    tokens = TextPreprocessor(stand_in.tokenizer(), TextRecipe(context_length=4))([b"red apple", b"red " * 50, b""])
    assert tokens.tolist() == [[1, 3, 8, 0], [1, 3, 3, 3], [1, 0, 0, 0]]


@pytest.mark.parametrize(("text", "words"), [(b"\xff", "not UTF-8"), (b"a" * 101, "101 bytes")])
def test_a_text_that_is_none_is_refused(stand_in: ModuleType, text: bytes, words: str) -> None:
    preprocessor = TextPreprocessor(stand_in.tokenizer(), TextRecipe(context_length=4), max_bytes=100)
    with pytest.raises(V2Error, match=words):
        preprocessor([text])


def test_a_broken_recipe_names_the_field(tmp_path: Path) -> None:
    path = tmp_path / "preprocess.json"
    path.write_text('{"image": {"size": 0, "mean": [0,0,0], "std": [1,1,1]}, "text": {"contextLength": 4}}')
    with pytest.raises(CorruptData, match=r"image\.size"):
        Recipe.read(path)
