"""`belvedere infer` against a real server: vectors, searches, and errors with their exit code."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from click.testing import CliRunner, Result

from belvedere_platform.errors import BelvedereError, InvalidInput, NotFound, Unavailable
from belvedere_serving.client import V2Client
from belvedere_serving.commands.infer import infer


@pytest.fixture
def gallery(tiny: ModuleType, tmp_path: Path) -> Path:
    for name, colour in {"red": (220, 0, 0), "green": (0, 220, 0), "blue": (0, 0, 220)}.items():
        (tmp_path / f"{name}.png").write_bytes(tiny.picture(colour))
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


async def run(*arguments: str) -> Result:
    return await asyncio.to_thread(CliRunner().invoke, infer, list(arguments))


def http(ports: tuple[int, int]) -> str:
    return f"http://127.0.0.1:{ports[0]}"


async def test_a_text_becomes_a_vector(ports: tuple[int, int], tiny: ModuleType) -> None:
    result = await run("text", "red apple", "--url", http(ports), "--output", "json")
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert answer["versions"] == ["tiny-v1"]
    np.testing.assert_allclose(answer["results"][0]["embedding"], tiny.expected_text(["red", "apple"]), atol=1e-5)


async def test_a_picture_finds_itself(ports: tuple[int, int], gallery: Path) -> None:
    picture = str(gallery / "green.png")
    options = ["--against", str(gallery), "--top", "2", "--output", "json"]
    result = await run("image", picture, "--url", f"127.0.0.1:{ports[1]}", "--grpc", *options)
    assert result.exit_code == 0, result.output
    hits = json.loads(result.stdout)["results"][0]["hits"]
    assert (len(hits), hits[0]["file"], hits[0]["cosine"]) == (2, "green.png", 1.0)


async def test_a_table_shows_hits_and_who_answered(ports: tuple[int, int], gallery: Path) -> None:
    result = await run("text", "red", "--url", http(ports), "--against", str(gallery))
    assert result.stdout.splitlines()[0] == "red"
    assert len(result.stdout.splitlines()) == 4
    assert result.stderr == "answered by tiny-v1\n"


@pytest.mark.parametrize("grpc", [False, True])
async def test_many_texts_go_in_batches_and_keep_their_order(
    ports: tuple[int, int], tiny: ModuleType, grpc: bool
) -> None:
    words = ["red", "green", "blue", "apple"] * 5

    def embed() -> np.ndarray:
        with V2Client(f"http://127.0.0.1:{ports[grpc]}", grpc=grpc, batch=3) as client:
            return client.embed_texts(words).vectors

    expected = [tiny.expected_text([word]) for word in words]
    np.testing.assert_allclose(await asyncio.to_thread(embed), expected, atol=1e-6)


@pytest.mark.parametrize("grpc", [False, True])
async def test_an_error_is_of_the_right_class(ports: tuple[int, int], grpc: bool) -> None:
    def embed(content: bytes | str) -> None:
        with V2Client(f"http://127.0.0.1:{ports[grpc]}", grpc=grpc) as client:
            client.embed_texts([content]) if isinstance(content, str) else client.embed_images([content])

    with pytest.raises(InvalidInput, match="none of PNG"):
        await asyncio.to_thread(embed, b"text")
    with pytest.raises(BelvedereError, match="failed on this input") as caught:
        await asyncio.to_thread(embed, "broken")
    assert caught.value.exit_code == 1


async def test_a_server_of_something_else_is_not_found(ports: tuple[int, int]) -> None:
    def embed() -> None:
        with V2Client(f"{http(ports)}/elsewhere") as client:
            client.embed_texts(["x"])

    with pytest.raises(NotFound, match="there is nothing at"):
        await asyncio.to_thread(embed)


@pytest.mark.parametrize("grpc", [False, True])
def test_nobody_there_is_unavailable(grpc: bool) -> None:
    with V2Client("http://127.0.0.1:1", grpc=grpc, timeout_seconds=5) as client, pytest.raises(Unavailable):
        client.embed_texts(["x"])


@pytest.mark.parametrize(
    ("url", "grpc", "words"),
    [
        ("ftp://x", False, "must be http://HOST:PORT"),
        ("", False, "must be"),
        ("http://[::1", False, "must be"),
        ("http://x:99999", False, "must be"),
        ("http://x:y", True, "must be"),
        ("http://x:1/p", True, "no path prefix"),
    ],
)
def test_an_address_that_is_none_is_refused(url: str, grpc: bool, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        V2Client(url, grpc=grpc)


async def test_an_empty_gallery_is_refused(ports: tuple[int, int], tmp_path: Path) -> None:
    result = await run("text", "red", "--url", http(ports), "--against", str(tmp_path))
    assert isinstance(result.exception, InvalidInput)
