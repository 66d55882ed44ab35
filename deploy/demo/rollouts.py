"""The chapters in which one version replaces another, or fails to."""

from __future__ import annotations

import asyncio
import signal
import time
from typing import Any

from belvedere_operators.controlplane.installation import load_installation
from belvedere_operators.executors.identity import snapshot
from belvedere_operators.executors.process import Running
from belvedere_platform.errors import Rejected
from belvedere_platform.store import Manifest
from belvedere_platform.store.kinds import ENGINE, MODEL_SERVICE
from control import condition, engine_refused, is_true
from stage import FAULTS, SERVICE, Demo, service_line
from timeline import requests_between, seconds_between

STEADY_RATE = 90


async def roll_out(demo: Demo, file: str, candidate: str, *, fault: str | None) -> None:
    """Chapters 5 and 6: ask for a version, watch what the judge does with it."""
    begin = time.time()
    demo.apply(file)
    ended = ("Promoted", "Aborted")
    service = await demo.control.follow(
        MODEL_SERVICE,
        SERVICE,
        lambda service: _rollout(service).get("candidate") == candidate and _rollout(service).get("phase") in ended,
        service_line,
        failed=lambda service: (
            _rollout(service).get("candidate") == candidate
            and condition(service, "EngineReady").get("reason") in ("ParityFailed", "BuildFailed")
        ),
        timeout_seconds=420,
    )
    await _settle(demo, candidate, fault)
    outcome = _rollout(service)["phase"]
    record = rollout_record(demo, _rollout(service), candidate, fault, begin)
    demo.report["rollouts"].append(record)
    narrator = demo.control.narrator
    for decision in demo.timeline.decided(candidate):
        narrator.say(f"  {decision['time'][11:19]}  {decision['decision']:<10} {decision['reason']}")
    narrator.say(
        f"  {candidate}: {outcome.lower()} after {record['seconds_to_decision']:.0f} s, first signal {record['first_signal']}; "
        f"clients saw {record['client_errors']} errors in {record['client_requests']} requests"
    )
    if outcome != ("Aborted" if fault else "Promoted"):
        raise Rejected(
            f"{candidate} should have been {'reverted' if fault else 'promoted'}, but was {outcome.lower()}: {_rollout(service)}"
        )


async def _settle(demo: Demo, candidate: str, fault: str | None) -> None:
    """Let the last answers arrive, and the alert of a candidate that failed or was slow: the judge is often quicker."""
    await asyncio.sleep(2)
    deadline = time.monotonic() + 15
    while fault in ("failing", "slow") and time.monotonic() < deadline:
        if any(str(d.get("signal")).startswith("alert:") for d in demo.timeline.decided(candidate)):
            return
        await asyncio.sleep(0.5)


def _rollout(service: Manifest) -> dict[str, Any]:
    return service.get("status", {}).get("rollout") or {}


def rollout_record(
    demo: Demo, state: dict[str, Any], candidate: str, fault: str | None, begin: float
) -> dict[str, Any]:
    """Draw up what the report says of one rollout."""
    decisions = demo.timeline.decided(candidate)
    clients = requests_between(demo.requests_file, begin, time.time())
    samples = [s for s in demo.timeline.samples if s["time"] >= begin]
    mine = [r for r in clients if r["version"] == candidate]
    last = next((d for d in reversed(decisions) if d["decision"] in ("Abort", "Promote")), None)
    errors = [r for r in clients if "error" in r]
    first_weight = state.get("firstWeightTime")
    return {
        "candidate": candidate,
        "fault": fault,
        "outcome": state["phase"],
        "seconds_to_decision": seconds_between(first_weight, state["completionTime"]) if first_weight else None,
        "candidate_requests": len(mine),
        "candidate_errors": sum("error" in r for r in mine),
        "client_requests": len(clients),
        "client_errors": len(errors),
        "client_errors_outside_candidate": sum(r["version"] != candidate for r in errors),
        "error_samples": sorted({str(r["error"])[:200] for r in errors})[:5],
        "first_signal": last["signal"] if last else None,
        "signals": _signals(decisions),
        "steps": [d for d in decisions if d["decision"] == "SetWeight"],
        "decisions": decisions,
        "begin": begin,
        "end": time.time(),
        "largest_weight": max((s["weight"] for s in samples if s["candidate"] == candidate), default=0),
    }


def _signals(decisions: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Return every signal that spoke about the candidate with the time it was first heard, in order."""
    first: dict[str, str] = {}
    for decision in decisions:
        if decision.get("signal"):
            first.setdefault(decision["signal"], decision["time"])
    return [{"signal": signal, "time": at} for signal, at in sorted(first.items(), key=lambda item: item[1])]


def prepare_faulty(demo: Demo) -> None:
    """Begin to make the bad versions beside the story, one after the other, so that they are there when it comes to them."""
    before: asyncio.Task[str] | None = None
    for fault in FAULTS:
        before = demo.faulty[fault] = asyncio.create_task(make_faulty(demo, fault, before))


async def make_faulty(demo: Demo, fault: str, before: asyncio.Task[str] | None) -> str:
    """Derive a bad version from the good one, import it with its evaluation waived and compile it. Returns its name."""
    if before is not None:
        await before
    version, tag = f"emoji-clip-v3-{fault}", f"imports/emoji-clip-v3-{fault}"
    for words in faulty_commands(version, tag, fault):
        await asyncio.to_thread(demo.control.run, *words, quiet=True)
    name = f"{version}-onnxruntime-fp32"
    manifest = {
        "apiVersion": "belvedere.dev/v1alpha1",
        "kind": "Engine",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"modelVersion": version, "parity": {"cosineMinimum": 0.999, "top1AgreementMinimum": 0.99}},
    }
    await demo.control.store.apply(manifest, field_manager="belvedere-demo")
    await demo.control.wait(
        ENGINE, name, lambda engine: is_true(engine, "Ready"), failed=engine_refused, timeout_seconds=300
    )
    return version


def faulty_commands(version: str, tag: str, fault: str) -> tuple[tuple[str, ...], ...]:
    """Return what a person would type to make and import a bad version."""
    return (
        ("train", "derive", "--from", "models/emoji-clip-v2", "--fault", fault, "--tag", tag),
        (
            "model",
            "import",
            "--from",
            tag,
            "--name",
            version,
            "--model",
            "emoji-clip",
            "--waive-evaluation",
            f"demonstration of a {fault} version",
        ),
    )


async def roll_out_faulty(demo: Demo, file: str, fault: str) -> None:
    """Ask for a version that was derived, imported and compiled in the meantime."""
    version = f"emoji-clip-v3-{fault}"
    for words in faulty_commands(version, f"imports/{version}", fault):
        demo.control.narrator.command(["belvedere", *words])
    with demo.control.narrator.live() as line:
        line.show(f"{demo.control.narrator.elapsed():5.0f} s  compiling {version}")
        await asyncio.wait_for(demo.faulty[fault], 300)
    await roll_out(demo, file, version, fault=fault)


async def roll_out_good(demo: Demo) -> None:
    """Replace version 1 by version 2; whoever makes the bad versions begins meanwhile."""
    await demo.send(f"rate {STEADY_RATE}")
    prepare_faulty(demo)
    accident = asyncio.create_task(kill_control_plane(demo)) if demo.chaos else None
    await roll_out(demo, "06-rollout-v2.yaml", "emoji-clip-v2", fault=None)
    if accident is not None:
        await accident


async def kill_control_plane(demo: Demo) -> None:
    """Kill the control plane with SIGKILL when the candidate has weight, and bring it back: nothing else may notice."""
    while True:
        service = await demo.control.get(MODEL_SERVICE, SERVICE)
        candidate = (service or {}).get("status", {}).get("candidate") or {}
        if candidate.get("desiredWeight"):
            break
        await asyncio.sleep(0.1)
    installation = load_installation(demo.control.home)
    assert installation is not None, f"{demo.control.home} has no installation"
    supervisor = installation.operator_slot().observe()
    assert isinstance(supervisor, Running), f"the control plane does not run: {supervisor}"
    evidence = service["status"].get("evidence") or {} if service else {}
    for entry in snapshot().values():
        if entry.parent == supervisor.identity.pid:
            entry.identity.send(signal.SIGKILL)
    begin = time.time()
    await asyncio.sleep(3)
    demo.control.run("up", "--home", str(demo.control.home), quiet=True)
    back = time.time()
    clients = requests_between(demo.requests_file, begin, back)
    demo.report["control_plane_killed"] = {
        "at_weight": candidate["desiredWeight"],
        "evidence_before": evidence.get("line"),
        "seconds_away": round(back - begin, 1),
        "client_requests_meanwhile": len(clients),
        "client_errors_meanwhile": sum("error" in r for r in clients),
    }
