"""One self-contained HTML page: tables, figures and pictures, everything inside the file."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from typing import Any

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:1080px;margin:2rem auto;padding:0 1rem;color:#1d2733}
h1{margin-bottom:0}h2{margin-top:2rem;border-bottom:1px solid #d8dee6}.quiet{color:#66717f}
table{border-collapse:collapse;font-size:13px}td,th{padding:.25rem .6rem;border-bottom:1px solid #e6eaef;text-align:left}
th{background:#f4f6f9}img{max-width:100%}.query{display:inline-block;margin:.4rem;padding:.5rem;background:#f4f6f9;font-size:12px}
.query img{width:64px;height:64px;image-rendering:pixelated;border:2px solid transparent}.query img.right{border-color:#0a7d38}
"""


def page(title: str, parts: Sequence[str]) -> str:
    """Return the whole page."""
    name = html.escape(title)
    head = f"<!doctype html><meta charset=utf-8><title>{name}</title><style>{STYLE}</style>"
    return "\n".join([head, f"<h1>{name}</h1>", *parts, ""])


def heading(text: str) -> str:
    """Return a section's heading."""
    return f"<h2>{html.escape(text)}</h2>"


def paragraph(text: str) -> str:
    """Return a paragraph in a quiet tone."""
    return f"<p class=quiet>{html.escape(text)}</p>"


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a table; numbers are shortened."""
    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{_cell(value)}</td>" for value in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else html.escape("" if value is None else str(value))


def picture(png: bytes, *, title: str = "", kind: str = "") -> str:
    """Return a picture that is part of the page."""
    data = base64.b64encode(png).decode()
    return f"<img class='{kind}' title='{html.escape(title, quote=True)}' src='data:image/png;base64,{data}'>"


def card(caption: str, pictures: Sequence[str]) -> str:
    """Return pictures under a caption, as one block."""
    return f"<div class=query>{html.escape(caption)}<br>{''.join(pictures)}</div>"


def by_split(metrics: Mapping[str, float], splits: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return the metrics with the name of their split taken off, the longest name that fits first."""
    found: dict[str, dict[str, float]] = {split: {} for split in splits}
    for name, value in metrics.items():
        for split in sorted(splits, key=len, reverse=True):
            if name.startswith(f"{split}_"):
                found[split][name.removeprefix(f"{split}_")] = value
                break
    return found
