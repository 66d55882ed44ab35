"""What a bare node is made of: its names, addresses, folders and the configuration files of its programs."""

from __future__ import annotations

import hashlib
import ipaddress
import json
from dataclasses import dataclass
from pathlib import Path

NODE = "belvedere-node"
UPLINK = "uplink"
PODS = "10.244.0.0/24"
SERVICES = "10.96.0.0/16"
DNS_ADDRESS = "10.96.0.10"
API_SERVER_PORT = 6443
CONTAINERD_SOCKET = "/run/containerd/containerd.sock"
PAUSE_IMAGE = "registry.k8s.io/pause:3.10"
# Set aside for benchmarks of network devices (RFC 2544), so no network that a machine is in should have it.
LINKS = ipaddress.ip_network("198.18.0.0/15")

# What the kubelet would set for the whole machine.
KERNEL_SETTINGS = {
    "/proc/sys/vm/overcommit_memory": 1,
    "/proc/sys/vm/panic_on_oom": 0,
    "/proc/sys/kernel/panic": 10,
    "/proc/sys/kernel/panic_on_oops": 1,
    "/proc/sys/kernel/keys/root_maxkeys": 1000000,
    "/proc/sys/kernel/keys/root_maxbytes": 25000000,
}


@dataclass(frozen=True, kw_only=True)
class Link:
    """The cable between the machine and the node."""

    interface: str
    machine_address: str
    node_address: str
    prefix_length: int = 30


def link_of(instance: str) -> Link:
    """Return the link of an instance: the same each time, another than any other instance's."""
    digest = hashlib.sha256(instance.encode()).hexdigest()
    block = int(digest[:8], 16) % (LINKS.num_addresses // 4)
    machine, node = (str(LINKS[4 * block + host]) for host in (1, 2))
    return Link(interface=f"bv{digest[:12]}", machine_address=machine, node_address=node)


@dataclass(frozen=True, kw_only=True)
class Folders:
    """Where a node keeps what."""

    directory: Path

    @property
    def state(self) -> Path:
        """The disk of the node: images, volumes, what pods write."""
        return self.directory / "state"

    @property
    def logs(self) -> Path:
        return self.directory / "logs"

    @property
    def config(self) -> Path:
        return self.directory / "config"

    @property
    def certificates(self) -> Path:
        return self.directory / "certificates"


def write_settings(folders: Folders, node_address: str, authority: Path) -> None:
    """Write the configuration of containerd, the kubelet, the network of the pods and kube-proxy."""
    config = folders.config
    (config / "cni").mkdir(parents=True, exist_ok=True)
    (config / "containerd.toml").write_text(_containerd(folders))
    (config / "cni" / "10-belvedere.conflist").write_text(json.dumps(_pod_network(folders), indent=1))
    (config / "kubelet.json").write_text(json.dumps(_kubelet(folders, node_address, authority), indent=1))
    (config / "kube-proxy.json").write_text(json.dumps(_kube_proxy(folders), indent=1))
    (config / "audit.json").write_text(json.dumps(_audit(), indent=1))
    (config / "resolv.conf").write_text("# there is no name server outside the cluster\n")
    settings = config / "kernel"
    settings.mkdir(exist_ok=True)
    for name, value in KERNEL_SETTINGS.items():
        (settings / Path(name).name).write_text(f"{value}\n")


def _containerd(folders: Folders) -> str:
    return f"""version = 2
root = "{folders.state}/containerd"
state = "/run/containerd"
# Nothing here may need a privilege that the machine's own root does not have.
oom_score = 0
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.devmapper"]
[grpc]
address = "{CONTAINERD_SOCKET}"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE_IMAGE}"
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{folders.config}/cni"
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
base_runtime_spec = "{folders.config}/containers.json"
"""


def _pod_network(folders: Folders) -> dict[str, object]:
    # Point to point, not a bridge: every packet between pods is then routed, so that kube-proxy's rules see it also
    # where the kernel does not show them what crosses a bridge.
    addresses = {
        "type": "host-local",
        "ranges": [[{"subnet": PODS}]],
        "routes": [{"dst": "0.0.0.0/0"}],
        "dataDir": f"{folders.state}/cni",
    }
    return {
        "cniVersion": "0.4.0",
        "name": "belvedere",
        "plugins": [
            {"type": "ptp", "ipMasq": False, "mtu": 1500, "ipam": addresses},
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ],
    }


def _kubelet(folders: Folders, node_address: str, authority: Path) -> dict[str, object]:
    certificates = folders.certificates
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": node_address,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(authority)},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(certificates / "kubelet.crt"),
        "tlsPrivateKeyFile": str(certificates / "kubelet.key"),
        "cgroupDriver": "cgroupfs",
        "failCgroupV1": False,
        "failSwapOn": False,
        "clusterDNS": [DNS_ADDRESS],
        "clusterDomain": "cluster.local",
        "containerRuntimeEndpoint": f"unix://{CONTAINERD_SOCKET}",
        "podLogsDir": f"{folders.state}/pod-logs",
        "resolvConf": str(folders.config / "resolv.conf"),
        "staticPodPath": "",
        "healthzBindAddress": "127.0.0.1",
        "syncFrequency": "5s",
        "nodeStatusUpdateFrequency": "5s",
        # Images are imported, and could not be got again.
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "maxPods": 100,
        "registryPullQPS": 0,
        "serializeImagePulls": False,
        "logging": {"verbosity": 1},
    }


def _kube_proxy(folders: Folders) -> dict[str, object]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": str(folders.config / "kube-proxy.kubeconfig")},
        "mode": "iptables",
        "clusterCIDR": PODS,
        "hostnameOverride": NODE,
        # The table of connections is the machine's.
        "conntrack": {"maxPerCore": 0},
        "metricsBindAddress": "127.0.0.1:10249",
    }


def _audit() -> dict[str, object]:
    # Who asked for what, without the bodies: enough to compare the roles of service accounts with what they do.
    return {
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "rules": [
            {"level": "None", "userGroups": ["system:serviceaccounts:kube-system"]},
            {"level": "Metadata", "userGroups": ["system:serviceaccounts"]},
            {"level": "None"},
        ],
    }
