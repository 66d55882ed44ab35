"""The three programs of a control plane on loopback: what each is started with, and how one sees that it serves."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from certificates import Authority, Files, service_account_keys

# What the embedded store does by itself, and no more: nothing else may act on the objects of a test.
CONTROLLERS = ("garbage-collector-controller", "namespace-controller")


@dataclass(frozen=True, kw_only=True)
class Ports:
    """One loopback port a listener."""

    etcd_clients: int
    etcd_peers: int
    api_server: int
    controllers: int


@dataclass(frozen=True, kw_only=True)
class Program:
    """A program to start, and the URL that answers 200 when it serves."""

    name: str
    arguments: tuple[str, ...]
    health_url: str


@dataclass(frozen=True, kw_only=True)
class Certificates:
    """Who is who in one control plane."""

    authority: Path
    etcd: Files
    api_server: Files
    controllers: Files
    admin: Files
    service_accounts: Files


def make_certificates(folder: Path) -> Certificates:
    """Issue every certificate that the programs and the user need."""
    authority = Authority(folder)
    return Certificates(
        authority=authority.certificate,
        etcd=authority.issue("etcd", "etcd", server=True),
        api_server=authority.issue("api-server", "kube-apiserver", server=True),
        controllers=authority.issue(
            "controllers", "system:kube-controller-manager", groups=("system:masters",), server=True
        ),
        admin=authority.issue("admin", "belvedere-admin", groups=("system:masters",)),
        service_accounts=service_account_keys(folder),
    )


def programs(directory: Path, ports: Ports, certificates: Certificates) -> tuple[Program, Program, Program]:
    """Return etcd, the API server and the controller manager, in the order in which they are started."""
    return (
        etcd(directory, ports, certificates),
        _api_server(ports, certificates),
        _controller_manager(directory, ports, certificates),
    )


def etcd(directory: Path, ports: Ports, certificates: Certificates) -> Program:
    """Return etcd, with its data in the directory."""
    clients, peers = (f"https://127.0.0.1:{port}" for port in (ports.etcd_clients, ports.etcd_peers))
    flags = {
        "name": "default",
        "data-dir": directory / "etcd",
        "listen-client-urls": clients,
        "advertise-client-urls": clients,
        "listen-peer-urls": peers,
        "initial-advertise-peer-urls": peers,
        "initial-cluster": f"default={peers}",
        "cert-file": certificates.etcd.certificate,
        "key-file": certificates.etcd.key,
        "trusted-ca-file": certificates.authority,
        "client-cert-auth": "true",
        "peer-cert-file": certificates.etcd.certificate,
        "peer-key-file": certificates.etcd.key,
        "peer-trusted-ca-file": certificates.authority,
        "peer-client-cert-auth": "true",
        # The state lives as long as the tests do; waiting for the disk would only make them slow.
        "unsafe-no-fsync": "true",
        "logger": "zap",
        "log-level": "warn",
    }
    return Program(name="etcd", arguments=arguments(flags), health_url=f"{clients}/health")


def _api_server(ports: Ports, certificates: Certificates) -> Program:
    url = f"{loopback_url(ports)}/readyz"
    return Program(name="kube-apiserver", arguments=arguments(api_server_flags(ports, certificates)), health_url=url)


def api_server_flags(ports: Ports, certificates: Certificates) -> dict[str, object]:
    """Return what an API server on loopback is started with."""
    return {
        "bind-address": "127.0.0.1",
        "advertise-address": "127.0.0.1",
        "secure-port": ports.api_server,
        # The address is loopback, which the Endpoints of the service "kubernetes" may not hold.
        "endpoint-reconciler-type": "none",
        "etcd-servers": f"https://127.0.0.1:{ports.etcd_clients}",
        "etcd-cafile": certificates.authority,
        "etcd-certfile": certificates.etcd.certificate,
        "etcd-keyfile": certificates.etcd.key,
        "client-ca-file": certificates.authority,
        # Nobody may speak for others here; the controllers only complain when there is no rule for it at all.
        "requestheader-client-ca-file": certificates.authority,
        "requestheader-allowed-names": "nobody",
        "requestheader-username-headers": "X-Remote-User",
        "requestheader-group-headers": "X-Remote-Group",
        "requestheader-extra-headers-prefix": "X-Remote-Extra-",
        "tls-cert-file": certificates.api_server.certificate,
        "tls-private-key-file": certificates.api_server.key,
        "service-account-issuer": "https://kubernetes.default.svc",
        "service-account-key-file": certificates.service_accounts.certificate,
        "service-account-signing-key-file": certificates.service_accounts.key,
        "service-cluster-ip-range": "10.96.0.0/16",
        "authorization-mode": "RBAC",
        "profiling": "false",
    }


def _controller_manager(directory: Path, ports: Ports, certificates: Certificates) -> Program:
    kubeconfig = directory / "controllers.kubeconfig"
    write_kubeconfig(kubeconfig, certificates.controllers, certificates.authority, loopback_url(ports))
    flags = {
        "kubeconfig": kubeconfig,
        "authentication-kubeconfig": kubeconfig,
        "authorization-kubeconfig": kubeconfig,
        "controllers": ",".join(CONTROLLERS),
        "bind-address": "127.0.0.1",
        "secure-port": ports.controllers,
        "tls-cert-file": certificates.controllers.certificate,
        "tls-private-key-file": certificates.controllers.key,
        "leader-elect": "false",
        "profiling": "false",
    }
    url = f"https://127.0.0.1:{ports.controllers}/healthz"
    return Program(name="kube-controller-manager", arguments=arguments(flags), health_url=url)


def loopback_url(ports: Ports) -> str:
    """Return where the API server listens."""
    return f"https://127.0.0.1:{ports.api_server}"


def write_kubeconfig(path: Path, user: Files, authority_certificate: Path, server: str) -> None:
    """Write a kubeconfig that needs no other file, for its owner alone."""
    authority, certificate, key = (_base64(file) for file in (authority_certificate, user.certificate, user.key))
    path.touch(mode=0o600)
    path.write_text(
        f"""apiVersion: v1
kind: Config
current-context: belvedere
contexts: [{{name: belvedere, context: {{cluster: belvedere, user: belvedere}}}}]
clusters:
- name: belvedere
  cluster: {{server: "{server}", certificate-authority-data: {authority}}}
users:
- name: belvedere
  user: {{client-certificate-data: {certificate}, client-key-data: {key}}}
"""
    )


def _base64(path: Path) -> str:
    return b64encode(path.read_bytes()).decode()


def arguments(flags: Mapping[str, object]) -> tuple[str, ...]:
    """Return flags as a command line has them."""
    return tuple(f"--{name}={value}" for name, value in flags.items())
