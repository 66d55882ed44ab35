"""What runs on a test cluster as pods: DNS and storage where the cluster brings none, KubeRay, the Prometheus operator.

addons.py KUBECONFIG    install the operators on a cluster that has the rest
"""

from __future__ import annotations

import os
import shutil
import string
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from belvedere_platform.errors import BelvedereError, InvalidInput, Unavailable
from images import HOME, USER_ID, Image
from node_programs import Tools, find_tools
from node_settings import PAUSE_IMAGE

HERE = Path(__file__).resolve().parent
MANIFESTS = HERE / "manifests"
OWN_IMAGE = "docker.io/library/belvedere:dev"
METRICS_SERVER_IMAGE = "registry.k8s.io/metrics-server/metrics-server:v0.8.0"
READY_WITHIN_SECONDS = 240


def cached_tools() -> Path:
    """Return where `make setup` and `make triton` put programs."""
    cache = Path(os.environ.get("BELVEDERE_CACHE") or Path.home() / ".cache" / "belvedere")
    return cache / "tools"


def alertmanager() -> Path:
    """Return the Alertmanager that `make setup` unpacked."""
    return cached_tools() / "prometheus" / "usr" / "bin" / "prometheus-alertmanager"


def triton() -> Path:
    """Return the folder of the Triton that `make triton` set up, if it did."""
    return cached_tools() / "triton"


def metrics_server() -> Path:
    """Return the metrics-server that `make metrics-server` builds, built or not."""
    where = subprocess.run([HERE / "metrics_server.sh", "--where"], check=True, capture_output=True, text=True)
    return Path(where.stdout.strip())


def monitoring_versions(tools: Tools) -> dict[str, str]:
    """Return the versions of Prometheus and Alertmanager; the latter's depends on the release of Debian or Ubuntu."""
    programs = {
        "PROMETHEUS_VERSION": tools.addons["prometheus"] / "bin/prometheus",
        "ALERTMANAGER_VERSION": alertmanager(),
    }
    versions = {}
    for variable, program in programs.items():
        said = subprocess.run([program, "--version"], check=True, capture_output=True, text=True).stdout
        # "prometheus, version 2.42.0+ds (branch: …"
        versions[variable] = "v" + said.split("version ", 1)[1].split()[0].partition("+")[0]
    return versions


def images(checkout: Path, tools: Tools) -> list[Image]:
    """Return every image that a bare node needs."""
    addons = tools.addons
    versions = monitoring_versions(tools)
    operators = {
        PAUSE_IMAGE: addons["pause"] / "bin/pause",
        "registry.k8s.io/coredns/coredns:v1.12.4": addons["coredns"] / "bin/coredns",
        "docker.io/rancher/local-path-provisioner:v0.0.30": addons["storage"] / "bin/local-path-provisioner",
        "quay.io/kuberay/operator:v1.6.2": addons["kuberay"] / "bin/manager",
        "quay.io/prometheus-operator/prometheus-operator:v0.85.0": addons["prometheus-operator"] / "bin/operator",
        "quay.io/prometheus-operator/prometheus-config-reloader:v0.85.0": addons["prometheus-operator"]
        / "bin/prometheus-config-reloader",
        f"quay.io/prometheus/prometheus:{versions['PROMETHEUS_VERSION']}": addons["prometheus"] / "bin/prometheus",
        f"quay.io/prometheus/alertmanager:{versions['ALERTMANAGER_VERSION']}": alertmanager(),
    }
    if metrics_server().exists():
        operators[METRICS_SERVER_IMAGE] = metrics_server()
    programs = [_program_image(name, program) for name, program in operators.items()]
    return [*programs, redis_image(tools), own_image(checkout)]


def _program_image(name: str, program: Path) -> Image:
    path = f"/bin/{program.name}"
    return Image(name=name, files={path: program}, entrypoint=(path,), userland=True)


def redis_image(tools: Tools) -> Image:
    """Return the image of Redis, under the name of the one that other clusters pull."""
    libraries = {f"/opt/lib/{one.name}": one.resolve() for one in tools.redis.glob("usr/lib/*/lib*.so.[0-9]")}
    program = (tools.redis / "usr" / "bin" / "redis-server").resolve()
    return Image(
        name="docker.io/library/redis:7",
        files={"/bin/redis-server": program, **libraries},
        entrypoint=("/bin/redis-server",),
        userland=True,
        environment={"LD_LIBRARY_PATH": "/opt/lib"},
    )


def own_image(checkout: Path) -> Image:
    """Return the image of the operator, the gateway, the server and the trainer: this checkout's own environment."""
    scripts = Path(sys.prefix) / "bin"
    return Image(
        name=OWN_IMAGE,
        files={},
        entrypoint=(),
        userland=True,
        user=str(USER_ID),
        environment={
            "PATH": f"{scripts}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": HOME,
            "VIRTUAL_ENV": sys.prefix,
            # The checkout can't be written to, so nothing compiled could be kept.
            "PYTHONDONTWRITEBYTECODE": "1",
            "BELVEDERE_CHECKOUT": str(checkout),
            # Used when it is there, as it is in the vendor's image on other clusters.
            "BELVEDERE_TRITON": str(triton()),
        },
    )


def install(kubeconfig: Path, tools: Tools, volumes: Path) -> None:
    """Apply everything that a bare node runs as pods, and wait until it serves."""
    kubectl = Kubectl(kubeconfig)
    kubectl.apply(MANIFESTS / "kube-router.yaml")
    kubectl.apply(MANIFESTS / "coredns.yaml", MANIFESTS / "storage.yaml", values={"VOLUMES": str(volumes)})
    install_operators(kubectl, tools)
    for namespace, deployment in (("kube-system", "coredns"), ("local-path-storage", "local-path-provisioner")):
        kubectl.wait_for_rollout(namespace, f"deployment/{deployment}")


def install_operators(kubectl: Kubectl, tools: Tools) -> None:
    """Apply KubeRay, the Prometheus operator, a Prometheus and an Alertmanager, and wait until they serve."""
    kubectl.apply(*_definitions(tools))
    kubectl.apply(tools.addons["kuberay"] / "manifests" / "role.yaml", MANIFESTS / "kuberay.yaml")
    kubectl.apply(
        tools.addons["prometheus-operator"] / "manifests" / "prometheus-operator-cluster-role.yaml",
        MANIFESTS / "prometheus-operator.yaml",
        MANIFESTS / "prometheus.yaml",
        values=monitoring_versions(tools),
    )
    kubectl.wait_for_rollout("kuberay-system", "deployment/kuberay-operator")
    kubectl.wait_for_rollout("monitoring", "deployment/prometheus-operator")
    for kind in ("prometheus", "alertmanager"):
        kubectl.run("wait", "-n", "monitoring", kind, "cluster", "--for=condition=Available", _timeout())


def _definitions(tools: Tools) -> list[Path]:
    folders = (tools.addons["kuberay"] / "manifests", tools.addons["prometheus-operator"] / "manifests")
    return [path for folder in folders for path in sorted(folder.glob("*.yaml")) if "role" not in path.name]


def _timeout() -> str:
    return f"--timeout={READY_WITHIN_SECONDS}s"


class Kubectl:
    """kubectl on one cluster."""

    def __init__(self, kubeconfig: Path) -> None:
        program = shutil.which("kubectl", path=f"{Path(sys.prefix) / 'bin'}:{os.environ.get('PATH', '')}")
        if program is None:
            raise InvalidInput("kubectl is needed: put it on PATH, or run  deploy/setup/setup.sh --with-helm")
        self._command = [program, f"--kubeconfig={kubeconfig}"]

    def run(self, *arguments: str, given: str | None = None) -> str:
        """Return what a command prints. Raises Unavailable with what it complains about."""
        done = subprocess.run([*self._command, *arguments], input=given, capture_output=True, text=True)
        if done.returncode:
            raise Unavailable(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def apply(self, *files: Path, values: Mapping[str, str] | None = None) -> None:
        """Apply manifests, with the values put in where they name them."""
        texts = [file.read_text() for file in files]
        if values is not None:
            texts = [string.Template(text).safe_substitute(values) for text in texts]
        self.run("apply", "--server-side", "--force-conflicts", "-f", "-", given="\n---\n".join(texts))

    def wait_for_rollout(self, namespace: str, workload: str) -> None:
        """Return when every replica is ready."""
        self.run("rollout", "status", "-n", namespace, workload, _timeout())


def main() -> int:
    """Install the operators. Returns the exit code."""
    try:
        install_operators(Kubectl(Path(sys.argv[1])), find_tools())
    except BelvedereError as error:
        print(f"cluster: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
