"""A request that is given up leaves no connection open, and one that is made no key on the disk."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import datetime
import gc
import socket
import ssl
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from belvedere_platform.errors import Unavailable
from belvedere_platform.store.kubernetes_transport import Transport

WAIT_SECONDS = 60.0
"""How long what must come is waited for: a test that fails ends, too."""


def certified(folder: Path) -> Path:
    """Return a file with a key and a certificate of its own."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    file = folder / "server.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return file


def certificate(folder: Path) -> ssl.SSLContext:
    """Return a server's side of TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certified(folder))
    return context


@contextlib.contextmanager
def silent_server(folder: Path) -> Iterator[tuple[str, threading.Event]]:
    """Give the URL of a server that reads a request and says nothing any more, and what is set when it has read one."""
    asked, over = threading.Event(), threading.Event()

    def serve() -> None:
        connection, _ = listener.accept()
        connection.settimeout(WAIT_SECONDS)
        if over.is_set():
            connection.close()
            return
        with certificate(folder).wrap_socket(connection, server_side=True) as line:
            line.recv(1 << 16)
            asked.set()
            over.wait()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"https://127.0.0.1:{address[1]}", asked
        finally:
            over.set()
            # Where nobody has come, the server waits for somebody still.
            socket.create_connection(address, WAIT_SECONDS).close()
            thread.join()


async def give_up(kubeconfig: Path, asked: threading.Event) -> None:
    """Ask, stop waiting for the answer, and close."""
    transport = Transport(kubeconfig=str(kubeconfig), context=None, environment={})
    asking = asyncio.create_task(transport.request("GET", "/api/v1/pods"))
    try:
        assert await asyncio.to_thread(asked.wait, WAIT_SECONDS), f"the server has read no request: {asking}"
    finally:
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await transport.close()


def test_a_server_that_nobody_asks_ends(tmp_path: Path) -> None:
    """Else a client that never comes would be a test that never ends."""
    with silent_server(tmp_path) as (_, asked):
        pass
    assert not asked.is_set()


def test_a_request_that_is_given_up_leaves_no_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left_open: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda found: left_open.append(found.exc_value))
    with silent_server(tmp_path) as (host, asked):
        kubeconfig = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "clusters": [{"name": "c", "cluster": {"server": host, "insecure-skip-tls-verify": True}}],
            "users": [{"name": "u", "user": {}}],
        }
        (tmp_path / "config").write_text(yaml.safe_dump(kubeconfig))
        # The loop ends before the server says good-bye, too.
        asyncio.run(give_up(tmp_path / "config", asked))
        gc.collect()
    assert left_open == []


async def test_keys_are_on_the_disk_for_no_longer_than_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is killed leaves behind what is there: an administrator's key, say."""
    pem = base64.b64encode(certified(tmp_path).read_bytes()).decode()
    config = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [
            {"name": "c", "cluster": {"server": "https://127.0.0.1:1", "certificate-authority-data": pem}},
        ],
        "users": [{"name": "u", "user": {"client-certificate-data": pem, "client-key-data": pem}}],
    }
    (tmp_path / "config").write_text(yaml.safe_dump(config))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    transports = [Transport(kubeconfig=str(tmp_path / "config"), context=None, environment={}) for _ in range(3)]
    for answer in await asyncio.gather(*(one.request("GET", "/") for one in transports), return_exceptions=True):
        assert isinstance(answer, Unavailable), answer
    assert list((tmp_path / "temporary").iterdir()) == []
    for one in transports:
        await one.close()
