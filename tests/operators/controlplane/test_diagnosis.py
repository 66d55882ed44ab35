"""The doctor names what is missing and what to type."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from belvedere_operators.controlplane import diagnosis
from belvedere_operators.controlplane.diagnosis import cpu_abilities, diagnose
from belvedere_operators.controlplane.installation import DEFAULT_PORTS, open_installation


def test_what_matters_of_the_processor() -> None:
    assert cpu_abilities("fpu sse avx2 avx512f avx512_bf16 misc") == ["avx2", "avx512f", "avx512_bf16"]


def test_missing_program_comes_with_what_to_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis.shutil, "which", lambda name, path=None: None)
    found = {f.subject: f for f in diagnose(tmp_path, cache=tmp_path, measure=False)}
    assert found["prometheus"].hint == "apt-get install prometheus"
    assert found["alertmanager"].hint == "apt-get install prometheus-alertmanager"
    assert (found["prometheus"].well, found["prometheus"].needed) == (False, True)
    assert found["npm"].needed is False
    assert found["python"].well


def test_port_in_use_comes_with_the_flag(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        open_installation(tmp_path, ports={"xds": port}, artifacts_url=None, scrape_seconds=None).save()
        found = {f.subject: f for f in diagnose(tmp_path, cache=tmp_path, measure=False)}
    assert found[f"port {port}"].hint == "end it, or start with `belvedere up --port xds=PORT`"
    assert set(DEFAULT_PORTS) >= {"xds"}


def test_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "NEEDED_DISK_BYTES", 1 << 60)
    found = {f.subject: f for f in diagnose(tmp_path, cache=tmp_path, measure=False)}
    assert not found["disk (home)"].well
    assert "--home DIR" in found["disk (home)"].hint
