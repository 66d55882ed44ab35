"""The programs of a bare node and its certificates: what each is started with."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from certificates import Authority, Files, service_account_keys
from node_settings import API_SERVER_PORT, NODE, SERVICES, Folders, Link
from programs import Certificates, Ports, api_server_flags, arguments, etcd, write_kubeconfig

HERE = Path(__file__).resolve().parent
# All on addresses of the node's own network namespace, so none can be taken.
PORTS = Ports(etcd_clients=2379, etcd_peers=2380, api_server=API_SERVER_PORT, controllers=10257)
INSIDE = f"https://127.0.0.1:{API_SERVER_PORT}"
FIRST = ("etcd", "kube-apiserver")
REST = ("containerd", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy")
# It may read nothing before its role is applied.
LAST = ("kube-router",)
KUBE_ROUTER_HEALTH_PORT = 20244
AGGREGATOR = "belvedere:aggregator"
"""Who speaks for others, as the API server does to APIs that it passes on, such as that of metrics."""


@dataclass(frozen=True, kw_only=True)
class Tools:
    """Where the programs were built."""

    kubernetes: Path
    packages: Path
    redis: Path
    addons: dict[str, Path]


def find_tools() -> Tools:
    """Return where the programs are, built or not."""
    where = subprocess.run([HERE / "build_node.sh", "--where"], check=True, capture_output=True, text=True)
    folders = {name: Path(folder) for name, folder in (line.split(maxsplit=1) for line in where.stdout.splitlines())}
    own = {name: folders.pop(name) for name in ("kubernetes", "packages", "redis")}
    return Tools(**own, addons=folders)


def make_node_certificates(folders: Folders, link: Link) -> Certificates:
    """Issue every certificate, and write a kubeconfig for each program that speaks to the API server."""
    authority = Authority(folders.certificates)
    address = (link.node_address,)
    certificates = Certificates(
        authority=authority.certificate,
        etcd=authority.issue("etcd", "etcd", server=True),
        api_server=authority.issue("api-server", "kube-apiserver", server=True, addresses=address),
        controllers=authority.issue("controllers", "system:kube-controller-manager", server=True),
        admin=authority.issue("admin", "belvedere-admin", groups=("system:masters",)),
        service_accounts=service_account_keys(folders.certificates),
    )
    authority.issue("kubelet-client", "kube-apiserver-kubelet-client", groups=("system:masters",))
    authority.issue("aggregator", AGGREGATOR)
    kubelet = authority.issue(
        "kubelet", f"system:node:{NODE}", groups=("system:nodes",), server=True, addresses=address
    )
    users = {
        "kube-controller-manager": certificates.controllers,
        "kube-scheduler": authority.issue("scheduler", "system:kube-scheduler", server=True),
        "kube-proxy": authority.issue("proxy", "system:kube-proxy"),
        "kube-router": authority.issue("router", "belvedere:kube-router"),
        "kubelet": kubelet,
    }
    for name, user in users.items():
        write_kubeconfig(folders.config / f"{name}.kubeconfig", user, certificates.authority, INSIDE)
    return certificates


def node_programs(folders: Folders, link: Link, tools: Tools, certificates: Certificates) -> dict[str, list[str]]:
    """Return the command line of each program, in the order in which they are started."""
    kubernetes = tools.kubernetes / "bin"
    flags: dict[str, dict[str, object]] = {
        "kube-apiserver": _api_server(folders, link, certificates),
        "kube-controller-manager": _controller_manager(folders, certificates),
        "kube-scheduler": _scheduler(folders),
        "kubelet": _kubelet(folders, link),
        "kube-proxy": {"config": folders.config / "kube-proxy.json"},
    }
    commands = {name: [str(kubernetes / name), *arguments(values)] for name, values in flags.items()}
    commands["etcd"] = [str(kubernetes / "etcd"), *etcd(folders.directory / "state", PORTS, certificates).arguments]
    commands["kube-router"] = [str(tools.addons["network-policies"] / "bin/kube-router"), *arguments(_router(folders))]
    commands["containerd"] = ["/usr/bin/containerd", "--config", str(folders.config / "containerd.toml")]
    return {name: commands[name] for name in (*FIRST, *REST, *LAST)}


def _api_server(folders: Folders, link: Link, certificates: Certificates) -> dict[str, object]:
    client = Files(
        certificate=folders.certificates / "kubelet-client.crt", key=folders.certificates / "kubelet-client.key"
    )
    return {
        **api_server_flags(PORTS, certificates),
        "bind-address": "0.0.0.0",
        "advertise-address": link.node_address,
        "endpoint-reconciler-type": "lease",
        "requestheader-allowed-names": AGGREGATOR,
        "proxy-client-cert-file": folders.certificates / "aggregator.crt",
        "proxy-client-key-file": folders.certificates / "aggregator.key",
        "authorization-mode": "Node,RBAC",
        "enable-admission-plugins": "NodeRestriction",
        "service-cluster-ip-range": SERVICES,
        "allow-privileged": "true",
        "kubelet-certificate-authority": certificates.authority,
        "kubelet-client-certificate": client.certificate,
        "kubelet-client-key": client.key,
        "kubelet-preferred-address-types": "InternalIP",
        "audit-policy-file": folders.config / "audit.json",
        "audit-log-path": folders.logs / "audit.log",
    }


def _controller_manager(folders: Folders, certificates: Certificates) -> dict[str, object]:
    kubeconfig = folders.config / "kube-controller-manager.kubeconfig"
    return {
        "kubeconfig": kubeconfig,
        "authentication-kubeconfig": kubeconfig,
        "authorization-kubeconfig": kubeconfig,
        "bind-address": "127.0.0.1",
        "root-ca-file": certificates.authority,
        "service-account-private-key-file": certificates.service_accounts.key,
        "use-service-account-credentials": "true",
        "horizontal-pod-autoscaler-sync-period": "5s",
        "leader-elect": "false",
        "profiling": "false",
    }


def _scheduler(folders: Folders) -> dict[str, object]:
    kubeconfig = folders.config / "kube-scheduler.kubeconfig"
    return {
        "kubeconfig": kubeconfig,
        "authentication-kubeconfig": kubeconfig,
        "authorization-kubeconfig": kubeconfig,
        "bind-address": "127.0.0.1",
        "leader-elect": "false",
        "profiling": "false",
    }


def _kubelet(folders: Folders, link: Link) -> dict[str, object]:
    return {
        "config": folders.config / "kubelet.json",
        "kubeconfig": folders.config / "kubelet.kubeconfig",
        "hostname-override": NODE,
        "node-ip": link.node_address,
        "root-dir": folders.state / "kubelet",
    }


def _router(folders: Folders) -> dict[str, object]:
    # Of what it can do only the network policies: services are kube-proxy's, and there is no other node to route to.
    return {
        "run-firewall": "true",
        "run-router": "false",
        "run-service-proxy": "false",
        "enable-cni": "false",
        "kubeconfig": folders.config / "kube-router.kubeconfig",
        "hostname-override": NODE,
        "service-cluster-ip-range": SERVICES,
        "health-port": KUBE_ROUTER_HEALTH_PORT,
    }
