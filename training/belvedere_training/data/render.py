"""From a vendor's drawing to a square RGB picture on a white ground."""

from __future__ import annotations

import io
import signal
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

from PIL import Image

from belvedere_platform.errors import CorruptData, Unavailable
from belvedere_training.data.styles import Drawing

_CHUNK = 64


def fit_and_pad(image: Image.Image, size: int) -> Image.Image:
    """Return the picture scaled to fit a white square of `size` pixels, centred. Transparency shows white."""
    image = image.convert("RGBA")
    if image.size != (size, size):
        ratio = size / max(image.size)
        width, height = (max(1, round(edge * ratio)) for edge in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    ground = Image.new("RGB", (size, size), (255, 255, 255))
    ground.paste(image, ((size - image.width) // 2, (size - image.height) // 2), image)
    return ground


def render(drawing: Drawing, size: int) -> bytes:
    """Return the drawing as PNG bytes; CorruptData names the style and concept that cannot be drawn."""
    try:
        image = fit_and_pad(Image.open(io.BytesIO(_raster(drawing, size))), size)
    except (ValueError, OSError) as error:
        raise CorruptData(f"the drawing of {drawing.concept} in {drawing.style} cannot be rendered: {error}") from error
    out = io.BytesIO()
    image.save(out, "PNG", compress_level=4)
    return out.getvalue()


def _raster(drawing: Drawing, size: int) -> bytes:
    if not drawing.svg:
        return drawing.data
    try:
        import resvg_py
    except ImportError as error:
        raise Unavailable("resvg-py is not installed: pip install 'belvedere[data]'") from error
    # 96 dpi: with resvg's default of 0, drawings that give their size in millimetres are refused.
    return bytes(resvg_py.svg_to_bytes(svg_string=drawing.data.decode(), width=size, dpi=96, skip_system_fonts=True))


def render_all(drawings: Iterable[Drawing], size: int, workers: int) -> Iterator[tuple[Drawing, bytes]]:
    """Yield (drawing, PNG) in the order given, rendered by this many processes (in this one for a single worker)."""
    drawings = list(drawings)
    if workers <= 1:
        yield from ((drawing, render(drawing, size)) for drawing in drawings)
        return
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_leave_interrupts_to_the_parent)
    try:
        yield from zip(drawings, pool.map(partial(render, size=size), drawings, chunksize=_CHUNK), strict=True)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _leave_interrupts_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
