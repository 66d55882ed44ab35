"""An installation is written down once; ports, locks and leftovers."""

from __future__ import annotations

import os
import re
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from belvedere_operators.controlplane.installation import (
    DEFAULT_PORTS,
    LONGEST_RAY_DIRECTORY,
    Installation,
    control_plane_lock,
    load_installation,
    open_installation,
    remove_leftovers,
)
from belvedere_operators.controlplane.lifecycle import check_ports
from belvedere_operators.controlplane.ports import conflicts, holders, listening_inodes
from belvedere_platform.errors import Conflict, CorruptData, InvalidInput, Unavailable
from belvedere_platform.ports import free_ports


def opened(home: Path, **ports: int) -> Installation:
    named = {name.replace("_", "-"): port for name, port in ports.items()}
    return open_installation(home, ports=named, artifacts_url=None, scrape_seconds=None)


def test_new_installation_writes_nothing_until_it_is_saved(tmp_path: Path) -> None:
    opened(tmp_path / "home")
    assert list(tmp_path.iterdir()) == []


def test_saved_installation_comes_back_with_its_id_and_ports(tmp_path: Path) -> None:
    first = opened(tmp_path, prometheus=9191)
    first.save()
    assert load_installation(tmp_path) == first
    again = opened(tmp_path, gateway=8888)
    assert again == replace(first, ports={**first.ports, "gateway": 8888})
    assert (again.ports["prometheus"], again.ports["xds"]) == (9191, DEFAULT_PORTS["xds"])
    assert os.stat(tmp_path / "installation.json").st_mode & 0o077 == 0, "it holds the secret"


def test_ray_directory_is_short_enough_for_unix_sockets(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 200)
    assert len(str(opened(deep).ray_directory)) <= LONGEST_RAY_DIRECTORY


def test_processes_get_the_limit_of_the_engine_cache_and_nothing_else_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BELVEDERE_ENGINE_CACHE_GIB", "7")
    monkeypatch.setenv("BELVEDERE_TRACES", "elsewhere")
    environment = opened(tmp_path).environment()
    assert environment["BELVEDERE_ENGINE_CACHE_GIB"] == "7"
    assert "BELVEDERE_TRACES" not in environment


@pytest.mark.parametrize(
    ("ports", "message"),
    [
        ({"promtheus": 1}, "--port promtheus: there is no such port; the names are gateway"),
        ({"xds": 8080}, r"port 8080 is given to both gateway and xds: choose another with --port xds=PORT"),
    ],
)
def test_wrong_ports_are_named(tmp_path: Path, ports: dict[str, int], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        opened(tmp_path, **ports)


def test_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "installation.json").write_text("{")
    with pytest.raises(CorruptData, match=r"installation\.json cannot be read"):
        load_installation(tmp_path)


def test_environment_is_the_users_without_what_would_mislead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BELVEDERE_HOME", "/elsewhere")
    monkeypatch.setenv("RAY_ADDRESS", "somewhere")
    monkeypatch.setenv("LANG", "C.UTF-8")
    installation = opened(tmp_path)
    environment = installation.environment()
    assert environment["BELVEDERE_HOME"] == str(tmp_path)
    assert environment["BELVEDERE_INSTANCE"] == installation.instance
    assert environment["BELVEDERE_STORE"] == f"sqlite:///{tmp_path}/store.db"
    assert environment["LANG"] == "C.UTF-8"
    assert "RAY_ADDRESS" not in environment


def test_one_control_plane_a_home(tmp_path: Path) -> None:
    refusal = pytest.raises(Conflict, match=rf"another control plane \(pid {os.getpid()}\) runs in")
    with control_plane_lock(tmp_path), refusal, control_plane_lock(tmp_path):
        pass
    with control_plane_lock(tmp_path):
        pass


def test_leftovers_go_and_data_stays(tmp_path: Path) -> None:
    installation = opened(tmp_path)
    for name in ("processes/x", "pods/y", "logs/z", "volumes/v"):
        (tmp_path / name).mkdir(parents=True)
    installation.ray_directory.mkdir()
    remove_leftovers(installation)
    assert {path.name for path in tmp_path.iterdir()} == {"logs", "volumes"}
    assert not installation.ray_directory.exists()


def test_log_that_ray_wrote_is_kept_when_ray_goes(tmp_path: Path) -> None:
    installation = opened(tmp_path)
    installation.save()
    theirs = tmp_path / "ray" / "driver.log"
    installation.ray_directory.mkdir()
    theirs.write_text("said\n")
    ours = tmp_path / "logs/default/rayjob/it/driver.log"
    ours.parent.mkdir(parents=True)
    ours.symlink_to(theirs.resolve())
    remove_leftovers(installation)
    assert (ours.read_text(), ours.is_symlink()) == ("said\n", False)
    assert not (tmp_path / "ray").is_symlink()


def test_listening_sockets_are_read_from_the_kernels_table() -> None:
    header = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
    listening = "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0\n"
    connected = "   1: 0100007F:1F91 0100007F:0050 01 00000000:00000000 00:00000000 00000000     0        0 4712 1 0\n"
    assert listening_inodes([header + listening + connected]) == {"4711": 8080}


def test_holder_of_a_port_is_named(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        found = holders([port])[port]
        assert found.pid == os.getpid()
        assert re.search(r"process \d+ \(.*(python|pytest)", str(found))
        assert conflicts({"xds": port}, own=[os.getpid()]) == {}
        free = dict(zip(DEFAULT_PORTS, free_ports(len(DEFAULT_PORTS)), strict=True))
        installation = replace(opened(tmp_path), ports={**free, "xds": port})
        with pytest.raises(Unavailable, match=rf"port {port} \(xds\) is in use by process .*--port xds=PORT"):
            check_ports(installation)


def test_port_that_is_bound_but_not_listened_on_is_taken() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        assert port in holders([port])
