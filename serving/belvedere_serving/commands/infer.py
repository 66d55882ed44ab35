"""`belvedere infer`: embed texts and pictures through a served model, and search pictures with them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from belvedere_platform.cli.options import namespace_option, output_option
from belvedere_platform.errors import InvalidInput

Command = TypeVar("Command", bound=Callable[..., Any])
DEFAULT_URL = "http://127.0.0.1:8080"
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def _common(command: Command) -> Command:
    options = [
        click.option("--url", envvar="BELVEDERE_URL", default=DEFAULT_URL, show_default=True, help="gateway or server"),
        click.option("--grpc", is_flag=True, help="speak gRPC instead of HTTP"),
        click.option(
            "--service", default=None, metavar="NAME", help="the ModelService to ask [default: the default one]"
        ),
        click.option(
            "--against",
            type=click.Path(path_type=Path, exists=True, file_okay=False),
            default=None,
            metavar="DIR",
            help="search the pictures in this folder",
        ),
        click.option("--top", type=click.IntRange(1), default=5, show_default=True, help="how many hits to show"),
        namespace_option,
        output_option("table", "json"),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@click.group()
def infer() -> None:
    """Ask a served model."""


@infer.command()
@click.argument("texts", nargs=-1, required=True)
@_common
def text(texts: tuple[str, ...], **options: Any) -> None:
    """Embed texts, or find the pictures that fit them best with --against."""
    with _client(options) as client:
        embedded = client.embed_texts(texts)
        _show("text", texts, embedded, client, options)


@infer.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False))
@_common
def image(files: tuple[Path, ...], **options: Any) -> None:
    """Embed pictures, or find the pictures most like them with --against."""
    with _client(options) as client:
        embedded = client.embed_images([file.read_bytes() for file in files])
        _show("image", [str(file) for file in files], embedded, client, options)


def _client(options: dict[str, Any]) -> Any:
    from belvedere_serving.client import V2Client

    service = f"{options['namespace']}/{options['service']}" if options["service"] else None
    return V2Client(options["url"], grpc=options["grpc"], service=service)


def _show(kind: str, names: Sequence[str], embedded: Any, client: Any, options: dict[str, Any]) -> None:
    if options["against"] is not None:
        rows = _search(kind, names, embedded, client, options)
    else:
        rows = [
            {kind: name, "embedding": [round(float(value), 6) for value in vector]}
            for name, vector in zip(names, embedded.vectors, strict=True)
        ]
    if options["output"] == "json":
        click.echo(json.dumps({"versions": embedded.versions, "results": rows}, ensure_ascii=False, indent=2))
        return
    for row in rows:
        click.echo(_line(kind, row))
    click.echo(f"answered by {', '.join(embedded.versions)}", err=True)


def _line(kind: str, row: dict[str, Any]) -> str:
    if "hits" in row:
        hits = "\n".join(f"  {hit['cosine']:.3f}  {hit['file']}" for hit in row["hits"])
        return f"{row[kind]}\n{hits}"
    head = ", ".join(f"{value:+.3f}" for value in row["embedding"][:4])
    return f"{row[kind]}: {len(row['embedding'])} numbers, {head}, …"


def _search(
    kind: str, names: Sequence[str], embedded: Any, client: Any, options: dict[str, Any]
) -> list[dict[str, Any]]:
    folder: Path = options["against"]
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    if not files:
        raise InvalidInput(f"--against {folder} has no pictures; it must have files that end in {', '.join(SUFFIXES)}")
    gallery = client.embed_images([file.read_bytes() for file in files]).vectors
    rows = []
    for name, scores in zip(names, embedded.vectors @ gallery.T, strict=True):
        best = (-scores).argsort(kind="stable")[: options["top"]]
        hits = [{"file": str(files[i].relative_to(folder)), "cosine": round(float(scores[i]), 4)} for i in best]
        rows.append({kind: name, "hits": hits})
    return rows
