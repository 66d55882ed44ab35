"""Write an evaluation as JSON, as figures and as one HTML page with pictures of hits and misses."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from belvedere_training.evaluation.page import by_split, card, heading, page, paragraph, picture, table
from belvedere_training.evaluation.plots import figures
from belvedere_training.evaluation.run import Evaluation, Query, pictures_of


def write_report(result: Evaluation, model: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write evaluation.json, evaluation.html and the figures, and return the files."""
    drawn = figures(result)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result.document(model), indent=1, ensure_ascii=False)
    files = {"evaluation.json": text.encode(), "evaluation.html": html_of(result, model, drawn).encode(), **drawn}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return [folder / name for name in files]


def html_of(result: Evaluation, model: Mapping[str, Any], drawn: Mapping[str, bytes]) -> str:
    """Return the page."""
    parts = [
        paragraph(" · ".join(f"{name} {value}" for name, value in model.items())),
        paragraph(f"data set {result.data['name']} {result.data['digest']} · {', '.join(result.data['licences'])}"),
        picture(drawn["recall.png"]),
    ]
    for split, metrics in by_split(result.metrics, list(result.embedded)).items():
        parts += [heading(f"{split}: {len(result.embedded[split].corpus)} pictures")]
        parts += [table(("measure", "value"), sorted(metrics.items()))]
        parts += [picture(drawn[name]) for name in (f"{split}-space.png",) if name in drawn]
        parts += _queries("found with the largest lead", split, result, result.hits[split])
        parts += _queries("found last", split, result, result.misses[split])
    return page("Evaluation", parts)


def _queries(title: str, split: str, result: Evaluation, queries: Sequence[Query]) -> list[str]:
    """Return the right picture (framed) and what was found instead, for each query."""
    if not queries:
        return []
    corpus = result.embedded[split].corpus
    shown = pictures_of(corpus, queries)
    cards = []
    for query in queries:
        names = {position: str(corpus.records[position]["captions"]) for position in (query.position, *query.found)}
        found = [
            picture(shown[position], title=names[position], kind="right" if position == query.position else "")
            for position in query.found
        ]
        own = [picture(shown[query.position], title=names[query.position], kind="right"), " → "]
        cards.append(card(f"{query.text} (place {query.rank + 1})", [*own, *found]))
    return [f"<h3>{title}</h3>", *cards]
