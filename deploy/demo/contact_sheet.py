"""Text queries answered with pictures, through the served model: a contact sheet as PNG."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from PIL import Image, ImageDraw, ImageFont

from samples import Sample

BATCH = 16
QUERIES = (
    "a red apple",
    "smiling face with sunglasses",
    "bicycle",
    "crescent moon",
    "狗",
    "a slice of pizza",
    "雨伞",
    "musical note",
)
# dims: N pictures, Q queries, E embedding


def embed(module: Any, client: Any, model: str, values: list[bytes]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return unit vectors [len(values), E] from an unmodified tritonclient, in batches."""
    parts = []
    for begin in range(0, len(values), BATCH):
        batch = values[begin : begin + BATCH]
        tensor = module.InferInput("TEXT" if model == "embed_text" else "IMAGE", [len(batch)], "BYTES")
        tensor.set_data_from_numpy(np.array(batch, dtype=np.object_))
        parts.append(client.infer(model, [tensor]).as_numpy("EMBEDDING"))
    return np.concatenate(parts)


def make(address: str, samples: list[Sample], path: Path, top: int = 8) -> dict[str, Any]:
    """Search the pictures by text, pictures over gRPC and texts over HTTP, and draw the answers. Returns the hits by query."""
    grpc_client, http_client = triton_grpc.InferenceServerClient(address), triton_http.InferenceServerClient(address)
    try:
        image_NE = embed(triton_grpc, grpc_client, "embed_image", [s.png for s in samples])
        text_QE = embed(triton_http, http_client, "embed_text", [q.encode() for q in QUERIES])
        own_text_NE = embed(triton_grpc, grpc_client, "embed_text", [s.en.encode() for s in samples])
    finally:
        grpc_client.close()
        http_client.close()
    ranks_QN = np.argsort(-(text_QE @ image_NE.T), axis=1)
    _draw([(query, [samples[i] for i in ranks_QN[row][:top]]) for row, query in enumerate(QUERIES)], path)
    similarity_NN = own_text_NE @ image_NE.T
    position_N = (similarity_NN > np.diag(similarity_NN)[:, None]).sum(1)
    return {
        "queries": {query: [samples[i].en for i in ranks_QN[row][:top]] for row, query in enumerate(QUERIES)},
        "served_recall": {f"r{k}": float((position_N < k).mean()) for k in (1, 5, 10)},
        "pictures": len(samples),
    }


def _font() -> Any:
    for name in ("NotoSansCJK-Regular.ttc", "wqy-microhei.ttc", "DejaVuSans.ttf"):
        try:
            return ImageFont.truetype(name, 15)
        except OSError:
            continue
    return ImageFont.load_default()


def _draw(rows: list[tuple[str, list[Sample]]], path: Path) -> None:
    """One row a query: its text, then the answers from left to right."""
    label, cell, font = 230, 76, _font()
    sheet = Image.new("RGB", (label + cell * len(rows[0][1]), cell * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    for y, (query, hits) in enumerate(rows):
        try:
            draw.text((10, y * cell + 28), query, fill="black", font=font)
        except UnicodeEncodeError:  # the built-in font has Latin letters only
            draw.text((10, y * cell + 28), query.encode("unicode_escape").decode(), fill="black", font=font)
        for x, hit in enumerate(hits):
            sheet.paste(Image.open(io.BytesIO(hit.png)).convert("RGB"), (label + x * cell + 6, y * cell + 6))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
