"""One home directory is one installation: its id, its ports and its secret, written down once."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import sys
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from belvedere_operators.executors.process import Slot, read_json, write_atomically
from belvedere_platform.errors import Conflict, CorruptData, InvalidInput

NAMESPACE = "belvedere-system"
DEFAULT_PORTS: Mapping[str, int] = {
    "gateway": 8080,
    "operator": 8081,
    "prometheus": 9090,
    "alertmanager": 9093,
    "envoy-admin": 9901,
    "xds": 18000,
    "gateway-metrics": 18001,
    "shadow-tap": 18002,
    "ray-dashboard": 8265,
    "ray-metrics": 8085,
    "ray-client": 10001,
    "serve-http": 8000,
    "serve-grpc": 9000,
}
# A Unix socket's path has at most 107 bytes, and Ray puts 60 of its own behind its directory.
LONGEST_RAY_DIRECTORY = 40


@dataclass(frozen=True, kw_only=True)
class Installation:
    """What stays the same from one `belvedere up` to the next."""

    home: Path
    instance: str
    ports: Mapping[str, int]
    alerts_secret: str
    artifacts_url: str
    scrape_seconds: float = 1.0
    num_cpus: int = 8
    """Logical CPUs of the local Ray: training and serving share the real ones."""
    object_store_mebibytes: int = 256

    @property
    def store_url(self) -> str:
        """Return the URL of the embedded store."""
        return f"sqlite:///{self.home / 'store.db'}"

    @property
    def ray_directory(self) -> Path:
        """Return where Ray keeps its sockets, logs and spilled objects; short, and outside the home."""
        return Path("/tmp") / f"belvedere-{self.instance}"

    @property
    def rules_directory(self) -> Path:
        """Return where the rule files of Prometheus are."""
        return self.home / "rules"

    @property
    def log(self) -> Path:
        """Return the log of the control plane itself, JSON lines."""
        return self.home / "logs" / NAMESPACE / "controlplane" / "operator" / "operator.jsonl"

    def url(self, port: str) -> str:
        """Return the URL of a part, by the name of its port."""
        return f"http://127.0.0.1:{self.ports[port]}"

    def operator_slot(self) -> Slot:
        """Return the slot of the control plane's own process."""
        return Slot(self.home / "processes" / f"{NAMESPACE}_controlplane_operator_0_main", instance=self.instance)

    def environment(self) -> dict[str, str]:
        """Return what every process of the installation gets: the environment of the user who started it, and ours."""
        inherited = {
            name: value
            for name, value in os.environ.items()
            if name in _INHERITED or not name.startswith(_NOT_INHERITED)
        }
        # The console scripts of the environment that this control plane runs from come first.
        programs = str(Path(sys.executable).parent)
        return inherited | {
            "PATH": os.pathsep.join((programs, inherited.get("PATH", os.defpath))),
            "BELVEDERE_ARTIFACTS": self.artifacts_url,
            "BELVEDERE_STORE": self.store_url,
            "BELVEDERE_HOME": str(self.home),
            "BELVEDERE_INSTANCE": self.instance,
            "PYTHONUNBUFFERED": "1",
        }

    def save(self) -> None:
        """Write it down, and make Ray's directory reachable from the home."""
        fields = {name: value for name, value in asdict(self).items() if name != "home"}
        write_atomically(self.home / "installation.json", json.dumps(fields, indent=2).encode())
        # `belvedere logs` finds what Serve's replicas write by way of the home.
        if not (self.home / "ray").is_symlink():
            (self.home / "ray").symlink_to(self.ray_directory)


_INHERITED = ("BELVEDERE_ENGINE_CACHE_GIB",)
_NOT_INHERITED = ("BELVEDERE_", "RAY_", "VIRTUAL_ENV", "PYTEST_", "CLICK_", "_BELVEDERE")


def load_installation(home: Path) -> Installation | None:
    """Return the installation in a home, None when there is none."""
    try:
        fields = read_json(home / "installation.json")
        return None if fields is None else Installation(home=home, **fields)
    except (ValueError, TypeError) as error:
        raise CorruptData(
            f"{home / 'installation.json'} cannot be read ({error}): remove the file and stop what runs by hand, "
            "or give another directory with --home"
        ) from error


def open_installation(
    home: Path, *, ports: Mapping[str, int], artifacts_url: str | None, scrape_seconds: float | None
) -> Installation:
    """Return the installation of a home with the changes asked for; a new one where there is none. Writes nothing yet."""
    unknown = sorted(set(ports) - set(DEFAULT_PORTS))
    if unknown:
        raise InvalidInput(f"--port {unknown[0]}: there is no such port; the names are {', '.join(DEFAULT_PORTS)}")
    found = load_installation(home)
    if found is None:
        found = Installation(
            home=home,
            instance=uuid.uuid4().hex[:8],
            ports=DEFAULT_PORTS,
            alerts_secret=secrets.token_urlsafe(24),
            artifacts_url=(home / "artifacts").as_uri(),
        )
    merged = {**DEFAULT_PORTS, **found.ports, **ports}
    by_number: dict[int, str] = {}
    for name, number in merged.items():
        if number in by_number:
            raise InvalidInput(
                f"port {number} is given to both {by_number[number]} and {name}: choose another with {port_flag(name)}"
            )
        by_number[number] = name
    return replace(
        found,
        ports=merged,
        artifacts_url=artifacts_url or found.artifacts_url,
        scrape_seconds=scrape_seconds or found.scrape_seconds,
    )


def port_flag(name: str) -> str:
    """Return the flag that changes a port."""
    return "--gateway-port PORT" if name == "gateway" else f"--port {name}=PORT"


@contextlib.contextmanager
def control_plane_lock(home: Path) -> Iterator[None]:
    """Hold the one control plane's place in a home. Raises Conflict when another has it."""
    home.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(home / "operator.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 64, 0).decode(errors="replace").strip() or "unknown"
            raise Conflict(
                f"another control plane (pid {holder}) runs in {home}: `belvedere down` stops it, "
                "or give another directory with --home"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def remove_leftovers(installation: Installation) -> None:
    """Remove what belongs to processes that have ended: their slots, roots and Ray's directory. Data and logs stay."""
    for link in (installation.home / "logs").glob("*/rayjob/*/*.log"):
        keep_log(link)
    (installation.home / "ray").unlink(missing_ok=True)
    for path in (installation.ray_directory, *(installation.home / name for name in ("processes", "pods", "rayjobs"))):
        shutil.rmtree(path, ignore_errors=True)
    (installation.home / "operator.lock").unlink(missing_ok=True)


def keep_log(link: Path) -> None:
    """Put the content of a log in the place of a link to it, before what it points to goes."""
    if not link.is_symlink():
        return
    target = link.resolve()
    link.unlink()
    if target.exists():
        shutil.copyfile(target, link)
