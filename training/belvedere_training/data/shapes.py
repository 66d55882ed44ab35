"""A tiny data set that is drawn rather than downloaded: coloured shapes in a few styles, for trying things out."""

from __future__ import annotations

import hashlib
import io
import random
from pathlib import Path

from PIL import Image, ImageDraw

from belvedere_training.data.manifest import write_dataset
from belvedere_training.data.shards import Sample

SIZE = 64
COLOURS = {
    "red": ("红色", (214, 40, 40)),
    "orange": ("橙色", (247, 127, 0)),
    "yellow": ("黄色", (246, 211, 45)),
    "green": ("绿色", (46, 160, 67)),
    "blue": ("蓝色", (32, 96, 208)),
    "purple": ("紫色", (128, 60, 180)),
    "brown": ("棕色", (121, 85, 72)),
    "black": ("黑色", (24, 24, 24)),
}
SHAPES = {
    "circle": ("圆形", None),
    "square": ("正方形", ((0, 0), (1, 0), (1, 1), (0, 1))),
    "triangle": ("三角形", ((0.5, 0), (1, 1), (0, 1))),
    "diamond": ("菱形", ((0.5, 0), (1, 0.5), (0.5, 1), (0, 0.5))),
    "cross": ("十字", ((0.35, 0), (0.65, 0), (0.65, 1), (0.35, 1))),
    "arrow": ("箭头", ((0, 0.3), (0.6, 0.3), (0.6, 0), (1, 0.5), (0.6, 1), (0.6, 0.7), (0, 0.7))),
}
STYLES = {"plain": "train", "large": "train", "small": "train", "outlined": "heldout_style", "line": "hard_style"}
_HELD_OUT = "diamond"


def build_shapes(folder: Path) -> Path:
    """Write the data set and return its folder; equal bytes on every call."""
    samples: dict[str, list[Sample]] = {}
    for style, role in STYLES.items():
        for shape in SHAPES:
            for colour in COLOURS:
                split = _split(role, shape)
                if split:
                    samples.setdefault(split, []).append(_sample(style, shape, colour))
    for part in samples.values():
        part.sort(key=lambda sample: hashlib.sha256(sample.key.encode()).hexdigest())
    facts = {
        "name": "shapes",
        "size": SIZE,
        "styles": {style: {"role": role, "licence": "Apache-2.0"} for style, role in STYLES.items()},
        "licences": ["Apache-2.0"],
        "concepts": len(SHAPES) * len(COLOURS),
        "heldOutFamilies": [_HELD_OUT],
    }
    return write_dataset(samples, facts, folder)


def _split(role: str, shape: str) -> str | None:
    if shape != _HELD_OUT:
        return role
    return "heldout_concepts" if role == "heldout_style" else None


def _sample(style: str, shape: str, colour: str) -> Sample:
    colour_zh, shape_zh = COLOURS[colour][0], SHAPES[shape][0]
    record = {
        "id": f"{colour}-{shape}",
        "style": style,
        "group": "shapes",
        "subgroup": shape,
        "family": shape,
        "captions": {"en": f"{colour} {shape}", "zh": f"{colour_zh}{shape_zh}"},
        "tags": {"en": [colour, shape], "zh": [colour_zh, shape_zh]},
        "licence": "Apache-2.0",
        "source": "drawn",
    }
    out = io.BytesIO()
    draw(style, shape, colour).save(out, "PNG")
    return Sample(key=f"{style}_{colour}-{shape}", png=out.getvalue(), record=record)


def draw(style: str, shape: str, colour: str) -> Image.Image:
    """Return the picture; place and size vary with the style and the concept."""
    jitter = random.Random(f"{style}/{shape}/{colour}")
    edge = {"large": 48, "small": 24}.get(style, 36) + jitter.randint(-3, 3)
    left, top = (jitter.randint(4, SIZE - edge - 4) for _ in range(2))
    image = Image.new("RGB", (SIZE, SIZE), (255, 255, 255))
    pen = ImageDraw.Draw(image)
    fill = None if style == "line" else COLOURS[colour][1]
    outline = {"outlined": (0, 0, 0), "line": COLOURS[colour][1]}.get(style)
    points = SHAPES[shape][1]
    if points is None:
        pen.ellipse((left, top, left + edge, top + edge), fill=fill, outline=outline, width=2)
    else:
        pen.polygon([(left + x * edge, top + y * edge) for x, y in points], fill=fill, outline=outline, width=2)
    return image
