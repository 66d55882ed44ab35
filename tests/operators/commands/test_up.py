"""What `up` and `down` say about wrong input, without starting anything."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from belvedere_operators.commands.up import down, up
from belvedere_operators.controlplane.installation import DEFAULT_PORTS
from belvedere_platform.errors import CorruptData, InvalidInput
from belvedere_platform.ports import free_ports


def refusal(*words: str) -> BaseException:
    result = CliRunner().invoke(up, list(words))
    assert result.exception is not None, result.output
    return result.exception


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--port", "prometheus"), "--port is 'prometheus'; it must be NAME=PORT"),
        (("--port", "prometheus=99999"), "--port is 'prometheus=99999'"),
        (("--port", "grafana=3000"), "--port grafana: there is no such port"),
        (("--port", "xds=7000,prometheus=7000"), "port 7000 is given to both"),
    ],
)
def test_wrong_flags_are_named(tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    error = refusal("--home", str(tmp_path / "home"), *words)
    assert isinstance(error, InvalidInput)
    assert message in str(error)
    assert not (tmp_path / "home").exists()


def test_down_where_nothing_runs(tmp_path: Path) -> None:
    result = CliRunner().invoke(down, ["--home", str(tmp_path / "home")])
    assert result.exit_code == 0
    assert "nothing runs in" in result.output


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small tmpfs")
    point = tmp_path / "small"
    point.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(point)], check=False).returncode != 0:
        pytest.skip("mounting is not allowed here")
    try:
        with (point / "filler").open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)
    except OSError:
        yield point
    finally:
        subprocess.run(["umount", "-l", str(point)], check=True)


def test_full_disk_is_one_message_and_nothing_is_started(full_disk: Path) -> None:
    ports = ",".join(f"{name}={port}" for name, port in zip(DEFAULT_PORTS, free_ports(len(DEFAULT_PORTS)), strict=True))
    error = refusal("--home", str(full_disk), "--port", ports)
    assert isinstance(error, CorruptData), error
    assert "no space is left for" in str(error)
    assert sorted(path.name for path in full_disk.iterdir()) == ["filler"]


def test_help_names_every_port() -> None:
    text = " ".join(CliRunner().invoke(up, ["--help"]).output.split()).replace("- ", "-")
    assert all(name in text for name in DEFAULT_PORTS)
