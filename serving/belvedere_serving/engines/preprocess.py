"""From what a client sends to what a tower takes: texts to tokens, encoded pictures to pixels. The same as in training."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel
from tokenizers import Tokenizer

from belvedere_platform.errors import CorruptData
from belvedere_platform.protocol import invalid
from belvedere_serving.engines.lengths import bucket_lengths

FORMATS = ("PNG", "JPEG", "WEBP")
_SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF")
WHITE = (255, 255, 255)


class _Part(BaseModel):
    # Unknown fields are kept out of the way: training may write more than serving needs.
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True, extra="ignore")


class ImageRecipe(_Part):
    """Edge of the square that a picture is fitted into, and the normalization of its channels in 0..1."""

    size: Annotated[int, Field(ge=1, le=4096)]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class TextRecipe(_Part):
    """How many tokens a text has at most, and what fills up the rest."""

    context_length: Annotated[int, Field(ge=1, le=65536)]
    pad_id: int = 0


class Recipe(_Part):
    """`preprocess.json` of a model."""

    image: ImageRecipe
    text: TextRecipe

    @classmethod
    def read(cls, path: Path) -> Recipe:
        """Return the recipe in a file."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise CorruptData(f"preprocess.json: {where}: {first['msg']}; publish the model again") from error


class ImageLimits(BaseModel):
    """What a picture may cost before it is looked at."""

    model_config = ConfigDict(frozen=True)

    max_bytes: int = 8 << 20
    max_pixels: int = 16_000_000


class TextPreprocessor:
    """Turns texts into rows of tokens of one length."""

    def __init__(self, tokenizer: str, recipe: TextRecipe, *, max_bytes: int = 64 << 10) -> None:
        self._tokenizer = Tokenizer.from_str(tokenizer)
        self._tokenizer.enable_truncation(recipe.context_length)
        self._tokenizer.no_padding()
        self._recipe = recipe
        self._max_bytes = max_bytes

    def __call__(self, elements: Sequence[bytes]) -> npt.NDArray[np.int64]:
        """Return tokens [n, contextLength]."""
        # One by one: the batch call starts a thread a core, which a replica with a share of one does not have.
        encoded = [self._tokenizer.encode(self._text(index, element)) for index, element in enumerate(elements)]
        tokens = np.full((len(encoded), self._recipe.context_length), self._recipe.pad_id, np.int64)
        for row, item in zip(tokens, encoded, strict=True):
            row[: len(item.ids)] = item.ids
        return tokens

    def shortened(self, elements: Sequence[bytes]) -> npt.NDArray[np.int64]:
        """Return tokens [n, l], all padded to the length of the longest text."""
        tokens = self(elements)
        return tokens[:, : self.lengths(tokens).max()]

    def lengths(self, tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the length that each row is padded to where an engine takes any: one of a few."""
        return bucket_lengths(tokens, self._recipe.pad_id)

    @property
    def context_length(self) -> int:
        """Return how many tokens a text has at most."""
        return self._recipe.context_length

    def num_tokens(self, elements: Sequence[bytes]) -> int:
        """Return how many tokens the texts have together, as far as the model reads them."""
        return sum(len(self._tokenizer.encode(self._text(index, one)).ids) for index, one in enumerate(elements))

    def ids(self, index: int, element: bytes) -> list[int]:
        """Return the tokens of one text, as far as the model reads them."""
        found: list[int] = self._tokenizer.encode(self._text(index, element)).ids
        return found

    def words(self, ids: Sequence[int]) -> str:
        """Return the text of some tokens; marks of beginnings and ends are none of it."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def _text(self, index: int, element: bytes) -> str:
        if len(element) > self._max_bytes:
            raise invalid(f"text {index} has {len(element)} bytes; at most {self._max_bytes} are allowed")
        try:
            return element.decode()
        except UnicodeDecodeError as error:
            raise invalid(f"text {index} is not UTF-8: {error.reason} at byte {error.start}") from error


class ImagePreprocessor:
    """Turns encoded pictures into pixels, fitted onto a white square."""

    def __init__(self, recipe: ImageRecipe, limits: ImageLimits | None = None) -> None:
        self._size = recipe.size
        self._limits = limits or ImageLimits()
        # (x / 255 - mean) / std as one multiplication and one addition.
        std = np.array(recipe.std, np.float32)
        self._scale = (1 / (255 * std)).astype(np.float32)[:, None, None]
        self._shift = (-np.array(recipe.mean, np.float32) / std)[:, None, None]

    def __call__(self, elements: Sequence[bytes], *, first: int = 0) -> npt.NDArray[np.float32]:
        """Return pixels [n, 3, size, size]. `first`: the number of the first picture in its request, for errors."""
        pixels = np.empty((len(elements), 3, self._size, self._size), np.float32)
        for index, element in enumerate(elements):
            square = np.asarray(fit_and_pad(self._decode(first + index, element), self._size))
            np.multiply(square.transpose(2, 0, 1), self._scale, out=pixels[index])
            pixels[index] += self._shift
        return pixels

    def blank(self) -> npt.NDArray[np.float32]:
        """Return the pixels [1, 3, size, size] of a white picture."""
        white = self._scale * WHITE[0] + self._shift
        return np.broadcast_to(white, (1, 3, self._size, self._size)).astype(np.float32)

    def _decode(self, index: int, element: bytes) -> Image.Image:
        if len(element) > self._limits.max_bytes:
            raise invalid(f"picture {index} has {len(element)} bytes; at most {self._limits.max_bytes} are allowed")
        if not element.startswith(_SIGNATURES):
            raise invalid(f"picture {index} is none of {', '.join(FORMATS)}")
        try:
            with warnings.catch_warnings():
                # Pillow warns of a bomb by its own limit; ours is below and is checked before anything is decoded.
                warnings.simplefilter("ignore")
                image: Any = Image.open(io.BytesIO(element), formats=FORMATS)
                if image.width * image.height > self._limits.max_pixels:
                    raise invalid(
                        f"picture {index} has {image.width} x {image.height} pixels; "
                        f"at most {self._limits.max_pixels} are allowed"
                    )
                image.load()
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, MemoryError) as error:
            raise invalid(f"picture {index} cannot be decoded: {error}") from error
        return image  # type: ignore[no-any-return]


def fit_and_pad(image: Image.Image, size: int) -> Image.Image:
    """Return the picture scaled to fit a white square, centred. Transparency shows white; what fits already is unchanged."""
    if image.mode == "RGB" and image.size == (size, size):
        return image
    image = image.convert("RGBA")
    if image.size != (size, size):
        ratio = size / max(image.size)
        width, height = (max(1, round(edge * ratio)) for edge in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    ground = Image.new("RGB", (size, size), WHITE)
    ground.paste(image, ((size - image.width) // 2, (size - image.height) // 2), image)
    return ground
