"""How many objects the operator brings to their end, how fast, and at what cost: `make bench-operator`.

usage: operator_bench.py --kwok PROGRAM --output FILE [--control-plane KUBECONFIG] [--objects N] [--only PART,PART]

A real API server and etcd, the operator as its own process, kwok for the nodes and pods, and simulator.py for what KubeRay
would do. All of it shares the machine, so a figure here is of the whole and not of the operator alone: each says whose
processor time it took. A part can be measured by itself; what was measured before of the others stays in the file.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import kuberay_peer
import measured_in_tests
from belvedere_platform.artifacts import ArtifactStore
from belvedere_platform.errors import BelvedereError
from belvedere_platform.ports import free_ports
from belvedere_platform.store import Kind, Manifest
from belvedere_platform.store.kinds import MODEL_SERVICE, TRAINING_RUN
from belvedere_platform.store.kubernetes import KubernetesStore
from belvedere_platform.store.kubernetes_transport import Transport
from belvedere_platform.telemetry.benchmark import Row, earlier_rows, result, write_benchmark
from ending import end_in_order
from fleet import (
    NUM_VERSIONS,
    Needed,
    apply_all,
    control_plane,
    fill_artifacts,
    make_namespace,
    make_nodes,
    model_service,
    python,
    running,
    training_run,
    while_they_run,
)
from operator_process import PATIENCE_SECONDS, Operator
from scratch import scratch
from shares import Meter, control_plane_programs, cpu_seconds, told

NAMESPACE = "bench-operator"
PEER_NAMESPACE = "bench-kuberay"
PACKAGES = ("belvedere", "kubernetes", "aiohttp")
PARTS = ("services", "runs", "restart", "peer", "tests")
"""What can be measured by itself. A restart needs the objects, so they are made, and measured, before it."""


@dataclass(kw_only=True)
class Bench:
    """One benchmark: where everything is, and what has been measured."""

    kubeconfig: Path
    folder: Path
    objects: int
    parts: frozenset[str]
    kwok: str
    store: KubernetesStore
    transport: Transport
    rows: list[Row] = field(default_factory=list)
    earlier: list[Row] = field(default_factory=list)
    """What an earlier run has left of the parts that this one leaves out."""

    processes: dict[str, int] = field(default_factory=dict)
    """Whose processor time is told, by what they are called."""

    @property
    def artifacts(self) -> str:
        """The URL of the artifact store."""
        return f"file://{self.folder / 'artifacts'}"


def operator_words(bench: Bench, port: int, simulator_port: int) -> list[str]:
    """Return how the operator is started."""
    secret = bench.folder / "secret"
    secret.write_text("bench")
    # As the chart has it: what guards the pods is a write as well.
    peers = bench.folder / "peers.yaml"
    peers.write_text("{gateway: [{namespaceSelector: {}}], operator: [{namespaceSelector: {}}]}")
    program = shutil.which("belvedere") or str(Path(sys.executable).with_name("belvedere"))
    return [
        program, "operator", f"--store=kubernetes://?kubeconfig={bench.kubeconfig}", f"--artifacts={bench.artifacts}",
        "--address=127.0.0.1", f"--port={port}", f"--alerts-secret-file={secret}",
        f"--prometheus-url=http://127.0.0.1:{simulator_port}", f"--watch-namespace={NAMESPACE}",
        f"--network-peers={peers}", f"--lease={NAMESPACE}/operator",
    ]  # fmt: skip


def ready(manifest: Manifest) -> bool:
    """Return whether an object has reached its end."""
    conditions = manifest.get("status", {}).get("conditions", ())
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


async def wait_for_all(bench: Bench, kind: Kind, names: Sequence[str], since: str) -> None:
    """Return when every one of these is ready. Raises RuntimeError with what is missing when that takes too long."""
    missing = set(names)
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            async with aclosing(bench.store.watch(kind, NAMESPACE, resource_version=since)) as events:  # type: ignore[type-var]
                async for event in events:
                    if event.type != "BOOKMARK" and ready(event.object):
                        missing.discard(event.object["metadata"]["name"])
                    if not missing:
                        return
    except TimeoutError as error:
        some = sorted(missing)[:3]
        raise RuntimeError(f"{len(missing)} of {len(names)} {kind.plural} are not ready, among them {some}") from error


async def measure(bench: Bench, operator: Operator, kind: Kind, manifests: list[Manifest]) -> tuple[float, float, str]:
    """Apply many objects. Return seconds until all are ready, writes for each, and where the writes went."""
    since = (await bench.store.list(kind, NAMESPACE)).resource_version
    before, meter = await operator.writes(), Meter(bench.processes)
    began = time.monotonic()
    waiting = asyncio.create_task(wait_for_all(bench, kind, [one["metadata"]["name"] for one in manifests], since))
    await apply_all(bench.store, manifests)
    applied = time.monotonic() - began
    await waiting
    seconds = time.monotonic() - began
    after = await operator.writes()
    spent = {name: (after[name] - before.get(name, 0.0)) / len(manifests) for name in after}
    kinds = ", ".join(f"{name} {value:.2g}" for name, value in sorted(spent.items()) if value)
    note = f"applied in {applied:.0f} s; {told(meter.used())}; writes each: {kinds}"
    return seconds, sum(spent.values()), note


async def restart(bench: Bench, words: list[str], port: int, log: Path) -> None:
    """Start the operator anew: how long until everything was reconciled once, and what it wrote until then and after."""
    began = time.monotonic()
    with running(words, log) as process:
        operator = Operator(port, process)
        await operator.wait_acting()
        filled = time.monotonic() - began
        needed = {"modelservice": bench.objects, "trainingrun": bench.objects, "endpoints": bench.objects}
        needed["modelversion"] = bench.objects + NUM_VERSIONS
        async with asyncio.timeout(PATIENCE_SECONDS):
            for controller, count in needed.items():
                await operator.wait_reconciled(controller, count)
        seconds = time.monotonic() - began
        # What is written late is written, too.
        await asyncio.sleep(20)
        writes = await operator.writes()
        note = (
            f"caches filled after {filled:.1f} s; operator used {cpu_seconds(process.pid):.0f} s of a core; "
            f"peak RSS {operator.memory_mib('VmHWM'):.0f} MiB"
        )
    kinds = ", ".join(f"{kind} {count:.0f}" for kind, count in sorted(writes.items()) if count)
    limit = 10 if bench.objects >= 1000 else None
    bench.rows.append(result("restart_catch_up_seconds", seconds, "s", "lower", limit, note=note))
    note = f"until caught up and 20 s after; {kinds or 'none'}"
    bench.rows.append(result("restart_writes", sum(writes.values()), "writes", "lower", 0, note=note))


async def peer(bench: Bench) -> None:
    """Bring as many RayJobs to their end with KubeRay alone, after us: two at a time would measure the processor."""
    seconds, note = None, "pods simulated alike, after ours; TrainingRuns do more: a gate, a ModelVersion and Events"
    try:
        cache = Path(os.environ.get("BELVEDERE_CACHE", Path.home() / ".cache" / "belvedere"))
        manager = kuberay_peer.program(cache)
        await make_namespace(bench.transport, PEER_NAMESPACE)
        seconds = await kuberay_peer.measure(
            bench.store, manager, bench.kubeconfig, PEER_NAMESPACE, bench.folder, bench.objects
        )
    except (kuberay_peer.PeerMissing, RuntimeError, OSError) as error:
        note = f"not measured: {error}"
    name = f"trainingruns_{bench.objects}_seconds"
    ours = next((row["value"] for row in (*bench.rows, *bench.earlier) if row["name"] == name), None)
    more: dict[str, Any] = {"peer": "TrainingRuns of Belvedere", "peer_value": ours, "own_value": seconds}
    bench.rows.append(
        result(f"kuberay_rayjobs_{bench.objects}_seconds", seconds, "s", "lower", None, note=note, **more)
    )


async def run(bench: Bench) -> None:
    """Measure the parts asked for."""
    await make_nodes(bench.transport)
    stages = Path(bench.kwok).with_name("stages.yaml")
    selector = "--manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake"
    kwok = [bench.kwok, f"--kubeconfig={bench.kubeconfig}", f"--config={stages}", selector]
    with running(kwok, bench.folder / "kwok.log") as process:
        bench.processes["kwok"] = process.pid
        playing = Needed(name="kwok", process=process, log=bench.folder / "kwok.log")
        if bench.parts & {"services", "runs", "restart"}:
            await while_they_run(_run_ours(bench), playing)
        if "peer" in bench.parts:
            print(f"bench: {bench.objects} RayJobs under the real KubeRay", flush=True)
            await while_they_run(peer(bench), playing)
    if "tests" in bench.parts:
        print("bench: what tests measure", flush=True)
        bench.rows += await asyncio.to_thread(measured_in_tests.rows, bench.kubeconfig, bench.folder)
        why = "not measured: the chart's pods need a cluster with nodes (make cluster-test)"
        bench.rows.append(result("helm_install_seconds", None, "s", "lower", None, note=why))


async def _run_ours(bench: Bench) -> None:
    print(f"bench: artifacts of {bench.objects} runs", flush=True)
    runs = [f"run-{number:05d}" for number in range(bench.objects)]
    versions = await asyncio.to_thread(fill_artifacts, ArtifactStore(bench.artifacts), NAMESPACE, runs)
    await make_namespace(bench.transport, NAMESPACE)
    port, simulator_port = free_ports(2)
    words = operator_words(bench, port, simulator_port)
    simulator = python("simulator.py", str(bench.kubeconfig), NAMESPACE, str(simulator_port))
    log, operator_log = bench.folder / "simulator.log", bench.folder / "operator.log"
    with running(simulator, log) as playing:
        bench.processes["simulator"] = playing.pid
        needed = Needed(name="the simulator", process=playing, log=log)
        with running(words, operator_log) as process:
            bench.processes["operator"] = process.pid
            measuring = _measure_operator(bench, Operator(port, process), versions, runs)
            await while_they_run(measuring, needed, Needed(name="the operator", process=process, log=operator_log))
        if "restart" in bench.parts:
            print("bench: restart", flush=True)
            await while_they_run(restart(bench, words, port, operator_log), needed)


async def _measure_operator(bench: Bench, operator: Operator, versions: list[Manifest], runs: list[str]) -> None:
    await operator.wait_ready()
    await apply_all(bench.store, versions)
    if bench.parts & {"services", "restart"}:
        await _measure_services(bench, operator)
    if bench.parts & {"runs", "restart"}:
        await _measure_runs(bench, operator, runs)
    peak = operator.memory_mib("VmHWM")
    limit = 400 if bench.objects >= 1000 else None
    bench.rows.append(result("operator_rss_mib", peak, "MiB", "lower", limit, note="the most it ever had"))
    if "restart" in bench.parts:
        await operator.wait_quiet()
    (bench.folder / "operator-metrics.log").write_text(await operator.metrics())


def _limit_seconds(objects: int) -> float | None:
    # A time for another number of objects is no answer to what was asked.
    return {1000: 120.0, 5000: 720.0}.get(objects)


async def _measure_services(bench: Bench, operator: Operator) -> None:
    many = bench.objects
    print(f"bench: {many} ModelServices", flush=True)
    manifests = [
        model_service(f"service-{number:05d}", NAMESPACE, f"version-{number % NUM_VERSIONS}") for number in range(many)
    ]
    seconds, writes, note = await measure(bench, operator, MODEL_SERVICE, manifests)
    name = f"modelservices_{many}_seconds"
    bench.rows.append(result(name, seconds, "s", "lower", _limit_seconds(many), note=note))
    bench.rows.append(result("writes_per_modelservice", writes, "writes", "lower", 12))


async def _measure_runs(bench: Bench, operator: Operator, runs: list[str]) -> None:
    many = bench.objects
    print(f"bench: {many} TrainingRuns", flush=True)
    manifests = [training_run(name, NAMESPACE) for name in runs]
    seconds, writes, note = await measure(bench, operator, TRAINING_RUN, manifests)
    name = f"trainingruns_{many}_seconds"
    bench.rows.append(result(name, seconds, "s", "lower", _limit_seconds(many), note=note))
    bench.rows.append(result("writes_per_trainingrun", writes, "writes", "lower", 12))


def parts_of(text: str) -> frozenset[str]:
    """Return the parts that a list names. Raises ArgumentTypeError."""
    given = frozenset(text.split(","))
    if not given <= set(PARTS):
        unknown = ", ".join(sorted(given - set(PARTS)))
        raise argparse.ArgumentTypeError(f"{unknown!r} is no part; name some of {', '.join(PARTS)}")
    return given


async def main() -> int:
    """Run the benchmark on the control plane given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--control-plane", type=Path, metavar="KUBECONFIG", help="default: one of its own, from nothing"
    )
    parser.add_argument("--kwok", required=True, metavar="PROGRAM")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--objects", type=int, default=1000)
    parser.add_argument(
        "--only", type=parts_of, default=frozenset(PARTS), metavar="PART,PART", help=f"of {', '.join(PARTS)}"
    )
    parser.add_argument("--logs", type=Path, help="keep the logs there")
    options = parser.parse_args()
    end_in_order()
    began = time.monotonic()
    with ExitStack() as stack:
        folder = stack.enter_context(scratch("belvedere-operator-"))
        kubeconfig = options.control_plane or stack.enter_context(control_plane(folder / "control-plane"))
        bench = Bench(
            kubeconfig=kubeconfig.absolute(),
            folder=folder,
            objects=options.objects,
            parts=options.only,
            kwok=options.kwok,
            store=KubernetesStore(kubeconfig=str(kubeconfig)),
            transport=Transport(kubeconfig=str(kubeconfig), context=None, environment={}),
            earlier=earlier_rows(options.output) if options.only < set(PARTS) else [],
            processes={"benchmark": os.getpid(), **control_plane_programs(kubeconfig.parent)},
        )
        try:
            await run(bench)
        except (BelvedereError, RuntimeError, TimeoutError) as error:
            print(f"bench: {error!r}", file=sys.stderr)
            return 1
        finally:
            if options.logs is not None:
                options.logs.mkdir(parents=True, exist_ok=True)
                for log in bench.folder.glob("*.log"):
                    shutil.copy(log, options.logs)
            await bench.store.close()
            await bench.transport.close()
    measured = {row["name"] for row in bench.rows}
    kept = [row for row in bench.earlier if row["name"] not in measured]
    write_benchmark(options.output, [*kept, *bench.rows], seconds=time.monotonic() - began, packages=PACKAGES)
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
